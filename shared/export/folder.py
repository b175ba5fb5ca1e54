"""The folders of `bytetwin export`. Each has the weights, what they are the weights of, and a model card:

model.safetensors   float32, under bytetwin's names
config.json         the spec, and what else its reader expects
README.md           the model card (shared.export.card)

`hf` has modeling_bytetwin.py and tokenization_bytetwin.py besides, for transformers, `mlx` has model.py, for mlx: the
forward pass of bytetwin itself, as far as they reach it (shared.script.module). A model of tokens brings
tokenizer.model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.numpy import save

from data.tokenizer import tokenizer_by_hash
from shared.errors import UserError
from shared.export.card import model_card
from shared.files import recover_folder, replacing_folder
from shared.model.initialise import with_neutral_logits
from shared.runs.target import Target
from shared.script.module import bundled_module
from shared.spec import Spec, spec_id, spec_to_dict

Form = Literal["safetensors", "hf", "mlx"]
FORMS: tuple[Form, ...] = get_args(Form)
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, TOKENIZER_FILE = (
    "model.safetensors",
    "config.json",
    "README.md",
    "tokenizer.model",
)
MODEL_MODULE, TOKENIZER_MODULE = "modeling_bytetwin", "tokenization_bytetwin"
# The module of the house behind each Python file of a form.
PROGRAMS: dict[Form, dict[str, str]] = {
    "safetensors": {},
    "hf": {f"{MODEL_MODULE}.py": "cuda_train.hf_model", f"{TOKENIZER_MODULE}.py": "cuda_train.hf_tokenizer"},
    "mlx": {"model.py": "mlx_train.plain_model"},
}
# What a file of safetensors says it is for; transformers refuses one that does not say "pt".
FRAMEWORK = {"safetensors": "np", "hf": "pt", "mlx": "mlx"}


def write_export(target: Target, form: Form, folder: Path, *, replace: bool = False) -> list[Path]:
    """Write the folder of a form, whole or not at all; returns its files, sorted.

    Raises UserError if there is something at `folder`, unless `replace` and it is an export, DataError if the tokenizer
    of the weights is missing, and RunError if the score of the run cannot be read.
    """
    refuse_folder(folder, replace)
    texts = {
        CONFIG_FILE: json.dumps(config(target, form), indent=2) + "\n",
        CARD_FILE: model_card(target, form),
        **{name: bundled_module(module) for name, module in PROGRAMS[form].items()},
    }
    if form == "hf":
        texts["tokenizer_config.json"] = json.dumps(tokenizer_config(target.spec), indent=2) + "\n"
    vocabulary = target.spec.vocabulary
    tokenizer = tokenizer_by_hash(vocabulary.tokenizer).content if vocabulary.reads_tokens else None
    weights = with_neutral_logits(target.spec, target.weights)
    with replacing_folder(folder) as temporary:
        # Written here: the library's own file is for its owner alone.
        (temporary / WEIGHTS_FILE).write_bytes(save(weights, {"format": FRAMEWORK[form]}))
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        if tokenizer is not None:
            (temporary / TOKENIZER_FILE).write_bytes(tokenizer)
    return sorted(folder.iterdir())


def refuse_folder(folder: Path, replace: bool) -> None:
    """Raise UserError if an export must not take this name."""
    recover_folder(folder)
    if not folder.exists() and not folder.is_symlink():
        return
    if not replace:
        raise UserError(f"{folder} exists; --replace overwrites it, --output names another folder")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else set()
    if not {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE} <= found:
        raise UserError(f"{folder} exists and is not an export (it lacks {WEIGHTS_FILE}): it is not replaced")


def config(target: Target, form: Form) -> dict[str, Any]:
    """config.json."""
    spec = target.spec
    known: dict[str, Any] = {
        "model_type": "bytetwin",
        "spec": spec_to_dict(spec),
        "spec_id": spec_id(spec),
        "weights": target.weights_name,
    }
    return known if form != "hf" else {**known, **_transformers_config(spec)}


def tokenizer_config(spec: Spec) -> Mapping[str, Any]:
    """tokenizer_config.json of transformers."""
    return {
        "tokenizer_class": "BytetwinTokenizer",
        "auto_map": {"AutoTokenizer": [f"{TOKENIZER_MODULE}.BytetwinTokenizer", None]},
        "vocabulary": spec_to_dict(spec)["vocabulary"],
        "model_max_length": spec.model.seq_len,
    }


def _transformers_config(spec: Spec) -> dict[str, Any]:
    size = spec.vocabulary.size
    return {
        "architectures": ["BytetwinForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODEL_MODULE}.BytetwinConfig",
            "AutoModelForCausalLM": f"{MODEL_MODULE}.BytetwinForCausalLM",
        },
        "dtype": "float32",
        # With the start of a window.
        "vocab_size": size + 1,
        "bos_token_id": size,
        "eos_token_id": spec.vocabulary.document_start,
        "max_position_embeddings": spec.model.seq_len,
        "hidden_size": spec.model.model_dim,
        "num_hidden_layers": spec.model.num_layers,
        "num_attention_heads": spec.model.num_heads,
        "use_cache": False,
    }

"""Exported folders as others read them, for `tests.fuzz.chain`."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROWS = 2


def read_back(folder: Path, artifact: str, report: Path, datasets: Path) -> None:
    """Write what is wrong with the exports `safetensors`, `hf` and `mlx` of an artifact, by form: {} if nothing is."""
    os.environ["BYTETWIN_DATASETS"] = str(datasets)
    import pytest
    from safetensors.numpy import load_file

    from shared.artifact import read_artifact
    from shared.engine.oracle import Oracle
    from tests import transformers_standin

    transformers_standin.install(pytest.MonkeyPatch())
    packed, found = read_artifact(folder / artifact), {}
    stored = load_file(folder / "safetensors" / "model.safetensors")
    for name, value in packed.weights.items():
        if name not in stored or not np.array_equal(stored[name], value):
            found[f"safetensors {name}"] = "is another"
    spec = packed.spec
    x = np.random.default_rng(0).integers(0, spec.vocabulary.size, (ROWS, spec.model.seq_len)).astype(np.int32)
    expected = Oracle(spec, dict(packed.weights)).log_probs(x)
    limit = 0.3 if spec.training.dtype == "bfloat16" else 2e-4
    for form, read in (("hf", _transformers), ("mlx", _mlx)):
        difference = float(np.abs(read(folder / form, x, spec.vocabulary.size) - expected).max())
        if not difference <= limit:
            found[form] = f"log-probabilities differ by {difference}"
    report.write_text(json.dumps(found))
    os._exit(0)


def _module(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"exported_{path.parent.name}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _transformers(folder: Path, x: np.ndarray, size: int) -> Any:
    import torch

    model = _module(folder / "modeling_bytetwin.py").BytetwinForCausalLM.from_pretrained(folder)
    started = torch.cat([torch.full((len(x), 1), size), torch.tensor(x[:, :-1]).long()], dim=1)
    with torch.no_grad():
        return torch.log_softmax(model(started).logits[..., :size].float(), -1).numpy()


def _mlx(folder: Path, x: np.ndarray, size: int) -> Any:
    from mlx_train.ops import make_ops

    make_ops()
    import mlx.core as mx

    module = _module(folder / "model.py")
    found = (
        module.load()(mx.array(x))
        if "folder" not in module.load.__code__.co_varnames
        else module.load(folder)(mx.array(x))
    )
    return np.array(found.astype(mx.float32))

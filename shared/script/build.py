"""The self-contained scripts: which modules go into them, their readable head, and the file as bytes."""

from __future__ import annotations

import ast
import re
from functools import cache

import brotli

from data.builtin import NAME as BUILTIN
from shared.engine.registry import ENGINES
from shared.script.emit import emit
from shared.script.memory import recall, remember, source_hash
from shared.script.reach import Reach
from shared.script.rename import rename_globals, rename_locals
from shared.spec import Spec, spec_to_short_toml

# The modules whose `main` a script runs.
TRAIN_ENTRY, SCORE_ENTRY = "shared.standalone.train", "shared.standalone.score"
# What a script has in place of modules that it can do without: it counts itself, its datasets are beside it,
# torchrun launches it, it codes and writes no text symbol by symbol, times no steps and leaves no page for a browser.
REPLACED = {
    "shared.script.build": "",
    "shared.user_folders": "def user_data_folder():pass",
    "shared.model.stepping": "ModelStepper=None",
    "shared.engine.window_stepper": "WindowStepper=None",
    "shared.ops.numpy_stepping": "NumpySteppingOps=None",
    "cuda_train.launch": "",
    "cuda_train.float64_ops": "",
    "mlx_train.float64_ops": "",
    "shared.views.report": "def write_report(run): pass",
    "shared.training.profiling": "from contextlib import nullcontext\n"
    "def profiled(engine,*_):return nullcontext(engine)",
    "cuda_train.profiler": "make_profiler=None",
    "mlx_train.profiler": "make_profiler=None",
}
# What a script of a spec with datasets of its own has in place of what makes the built-in ones.
MAKES_NO_TEXT = {"data.making": "def make_missing(_):pass"}
# What a script of a spec without adaptation has in place of what learns from scored text.
NEVER_ADAPTS = {
    "shared.scoring.adaptation": "from shared.scoring.bits_per_byte import score_by_spec\n"
    "score_text=score_by_spec\n"
    "def score_adapted(*_,**__):pass\n"
    "def check_adaptation(_):pass",
    "shared.scoring.journal": "def check_journal(*_):pass",
    "shared.scoring.later_text": "def check_later_text(*_,**__):pass",
    "shared.model.row_factors": "def with_row_factors(ops,spec,params,x):return ops,params,x\n"
    "def symbols_of(model,x):return x",
    "shared.spec.adaptation": "from typing import Literal\nfrom pydantic import ConfigDict\n"
    "from shared.spec.base import Section\nclass AdaptationSpec(Section):\n"
    " model_config=ConfigDict(extra='ignore')\n kind:Literal['none']='none'\n is_on:Literal[False]=False\n"
    "def named_adaptation(values):return values",
}
# What belongs to an engine and no script calls.
NEVER_CALLED = frozenset(
    {
        "cuda_train.compiling:keep_compiled",
        "cuda_train.device:gpu_environments",
        "cuda_train.device:matrix_product_flops_per_s",
        "mlx_train.device:keep_compiled",
        "mlx_train.device:matrix_product_flops_per_s",
    }
)
# What a script that only scores a fixed predictor, without an audit, never calls.
NEVER_TRAINS = frozenset(
    {
        "data.sketch:sketch_documents",
        "data.sketch_file:stored_sketch",
        # Of what an artifact lacks, the parts of auxiliary losses, none is a table of symbols.
        "shared.model.bigrams:bigram_embedding",
        "shared.model.initialise:overtone",
        "shared.model.training_loss:training_loss",
        "shared.optim.rules:_adam",
        "shared.optim.rules:_sgd",
        "shared.optim.update:optimizer_step",
        "shared.scoring.bits_per_byte:Tally.load_state",
        "shared.scoring.bits_per_byte:Tally.save_state",
        "cuda_train.table_gradient:_Rows.backward",
        "cuda_train.kernels.table_gradient:_table_gradients",
        "cuda_train.kernels.attention_heads:_attention_heads_backward",
        "cuda_train.kernels.attention_heads:_Heads.backward",
        *(
            f"cuda_train.kernels.{kernel}:{name}"
            for kernel in ("normed_mlp", "patch_attention", "residual_norm", "softcapped_cross_entropy", "squared_mlp")
            for name in (f"_{kernel}_backward", "_gradient")
        ),
        "mlx_train.cpu_ops:_read_rows_vjp",
        "mlx_train.table_gradient:_read_rows_vjp",
        *(
            f"{engine}.engine:TrainingEngine.{name}"
            for engine, names in {
                "cuda_train": "warm_up train_step gradients _record _updated _updated_joints _backward _backward_of",
                "mlx_train": "warm_up train_step gradients _weighted_gradients _accumulate _optimizer_step _updated",
            }.items()
            for name in names.split()
        ),
    }
)
# What to install for each package that a script imports: lines of pyproject.toml, which a test compares.
REQUIREMENTS = {
    "brotli": ("brotli==1.2.1",),
    "mlx": (
        "mlx==0.32.4; sys_platform == 'darwin'",
        "mlx[cpu]==0.32.4; sys_platform == 'linux'",
        "ngsolve-openblas==0.3.33.post1; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ),
    "numpy": ("numpy==2.4.6",),
    "pydantic": ("pydantic==2.14.3",),
    "safetensors": ("safetensors==0.8.0",),
    "tomli_w": ("tomli-w==1.2.0",),
    "torch": ("torch==2.13.0",),
    "zstandard": ("zstandard==0.25.0",),
}
# Imported where a text of tokens is opened.
READS_TOKENS = "sentencepiece==0.2.3"
# Comes with torch where it is used at all.
UNASKED = {"triton"}

HEAD = """#!/usr/bin/env python3
# coding: latin-1
\"""{title}

Needs Python 3.11 or later and these packages; other versions may give other digits:
    {packages}
Run it:
{usage}
Datasets are folders in the folder `datasets` beside this file, or in $BYTETWIN_DATASETS.

Below, compressed, is the source of bytetwin as far as this program can reach it, without comments.
\"""
"""
SPEC = """# What is trained by default, as far as it differs from the defaults of a spec.
SPEC = '''
{spec}'''
"""
TRAIN_USAGE = """    python train.py train             trains, packs and scores; --help lists the options
    python train.py score ARTIFACT    scores a packed model
"""
LAUNCHER = """    torchrun --nproc_per_node 8 train.py train
"""
SCORE_USAGE = """    python score.py ARTIFACT [--data DATASET|FILE]
"""
# What latin-1 text between double quotes cannot hold as it is.
ESCAPES = {"\0": r"\0", "\n": r"\n", "\r": r"\r", '"': r"\"", "\\": r"\\"}


def training_script(engine: str, spec: Spec) -> bytes:
    """The file that trains on an engine and scores; `spec` is what it trains by default."""
    title = f"Trains a language model on {engine}, packs it and scores what was packed, in bits per byte."
    usage = TRAIN_USAGE + ("" if ENGINES[engine].launcher else LAUNCHER)
    lines = (line.encode("unicode_escape").decode() for line in spec_to_short_toml(spec).split("\n"))
    escaped = "\n".join(lines).replace("'", "\\'")
    return _script(TRAIN_ENTRY, engine, spec, title, usage, SPEC.format(spec=escaped), "SPEC")


def scoring_script(engine: str, spec: Spec) -> bytes:
    """The file that scores artifacts of a spec, and others with its vocabulary and no other need of adaptation, on an
    engine, or with "numpy" on none."""
    title = f"Scores a packed language model on {engine}, in bits per byte."
    return _script(SCORE_ENTRY, engine, spec, title, SCORE_USAGE)


def training_requirements(engine: str, spec: Spec) -> list[str]:
    """What to install for the file of `training_script`, as pip reads it."""
    return _code_of(TRAIN_ENTRY, engine, spec)[1]


def _script(entry: str, engine: str, of: Spec, title: str, usage: str, spec: str = "", name: str = "''") -> bytes:
    """The whole file for a spec; `spec` is the statement that binds `name` to its text."""
    code, packages = _code_of(entry, engine, of)
    head = HEAD.format(title=title, packages="\n    ".join(packages), usage=usage)
    # A traceback shows the line of the call, so the code is not in it.
    start = f'if __name__=="__main__":start(__file__,__doc__,CODE,"{entry}","{engine}",{name})\n'
    return f'{head}{spec}{emit(boot("start"))}CODE="{_quoted(code)}"\n{start}'.encode("latin-1")


def _quoted(code: bytes) -> str:
    """Bytes as characters of a string in double quotes."""
    text = code.decode("latin-1")

    def escape(found: re.Match[str]) -> str:
        # A digit after it would belong to the short form.
        digit = found[0] == "\0" and text[found.end() : found.end() + 1].isdigit()
        return r"\x00" if digit else ESCAPES[found[0]]

    return re.sub(r'[\0\n\r"\\]', escape, text)


@cache
def boot(word: str) -> ast.Module:
    """shared.script.boot as far as one of its names reaches, without what readers alone need."""
    name = "shared.script.boot"
    reach = Reach([(name, word)])
    # An import from the future would have to stand above the spec.
    body = [item for item in reach.body(reach.modules[name]) if getattr(item, "module", None) != "__future__"]
    return ast.Module(body, [])


def _code_of(entry: str, engine: str, spec: Spec) -> tuple[bytes, list[str]]:
    """(code, what to install) for a spec."""
    makes_text = entry == TRAIN_ENTRY and any(
        name.partition("-")[0] == BUILTIN for name in (spec.data.train, spec.data.heldout)
    )
    code, packages = _code(entry, engine, spec.evaluation.adaptation.is_on, makes_text)
    return code, sorted([*packages, READS_TOKENS] if spec.vocabulary.reads_tokens else packages)


@cache
def _code(entry: str, engine: str, adapts: bool, makes_text: bool) -> tuple[bytes, list[str]]:
    """(brotli of name, text, name, text, ... with zero bytes between, what to install) of all that an entry reaches."""
    roots = [(entry, "main")]
    if engine in ENGINES:
        roots.append((f"{ENGINES[engine].package}.package", "PACKAGE"))
    replaced = REPLACED | ({} if adapts else NEVER_ADAPTS) | ({} if makes_text else MAKES_NO_TEXT)
    idle = NEVER_CALLED | (NEVER_TRAINS if entry == SCORE_ENTRY and not adapts else frozenset())
    key = source_hash(repr((roots, replaced, sorted(idle), REQUIREMENTS)))
    kept = recall(key)
    if kept is None:
        kept = _made(roots, replaced, idle)
        remember(key, *kept)
    return kept


def _made(roots: list[tuple[str, str]], replaced: dict[str, str], idle: frozenset[str]) -> tuple[bytes, list[str]]:
    reach = Reach(roots, replaced, idle)
    fixed = reach.keywords | reach.words
    parts = []
    for name in sorted(reach.modules):
        module, body = reach.modules[name], reach.body(reach.modules[name])
        names = rename_globals(body, module.names, reach.words | reach.asked.get(name, set()))
        # A framework may give arguments by name to what an engine passes to it.
        rename_locals(body, names, fixed, parameters=name.partition(".")[0] in ("shared", "data"))
        parts += [name, emit(ast.Module(body, []))]
    code = brotli.compress("\0".join(parts).encode(), quality=11, lgwin=24)
    return code, [line for package in reach.packages() - UNASKED for line in REQUIREMENTS[package]]

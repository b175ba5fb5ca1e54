"""bytetwin as a library: what the commands of the same names do.

    import bytetwin

    spec = bytetwin.load_spec("smoke", ["training.steps=100"])
    run = bytetwin.train(spec).run.path
    model = bytetwin.load(run)
    print(bytetwin.score(model).bpb, "".join(bytetwin.generate(model, "Once", 64)))

A model is a run's or an artifact's weights with their spec: `model.weights["embed.weight"]` is an array of NumPy.
`nats` says how surprising each symbol of a text is, `log_probs` gives whole distributions, `import_documents` makes a
dataset of texts. Bad input raises UserError, which is a ValueError, with one line that says what is wrong and what is
allowed. An engine is "mlx", "torch" or, but for training, "numpy".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.datasets import bind_tokenizer, open_split
from data.importing import DEFAULT_HELDOUT_FRAC, ImportResult
from data.importing import import_documents as import_texts
from shared import __version__
from shared.coding.codec import Codec
from shared.coding.text import symbols_of
from shared.engine.package import available_engines, create_scorer, default_engine, default_training_engine
from shared.engine.protocol import Scorer
from shared.engine.ranks import Ranks
from shared.errors import UserError
from shared.runs.finished_run import FinishedRun
from shared.runs.observer import Observer
from shared.runs.target import RUNS, load_trained
from shared.runs.target import Target as Model
from shared.scoring.bits_per_byte import Progress, Score
from shared.scoring.document import ScoreDocument, WeightsName
from shared.scoring.evaluate import evaluate
from shared.scoring.generate import decode_text, encode_prompt, first_bytes, sample
from shared.scoring.resume import ScoreState, weights_sha256
from shared.scoring.symbols import of_each_symbol
from shared.scoring.windows import check_window
from shared.spec import Spec, with_overrides
from shared.spec import load_spec as read_spec
from shared.spec.adaptation import AdaptationSpec

if TYPE_CHECKING:
    from shared.study.comparison import Comparison
    from shared.training.profiling import ProfileRequest
    from shared.training.run import RunResult

__all__ = [
    "Model",
    "Spec",
    "UserError",
    "__version__",
    "compare",
    "compress",
    "decompress",
    "encode",
    "generate",
    "import_documents",
    "load",
    "load_spec",
    "log_probs",
    "nats",
    "score",
    "scorer",
    "train",
]


def load_spec(source: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec of a preset or a .toml file, changed by `section.key=value`, with the tokenizer of its dataset."""
    return bind_tokenizer(read_spec(str(source), overrides))


def train(
    spec: Spec,
    *,
    engine: str | None = None,
    run: str | None = None,
    runs_dir: str | Path = RUNS,
    resume: bool = False,
    finish: bool = True,
    log: Sequence[str] = (),
    observer: Observer | None = None,
    profile: ProfileRequest | None = None,
    ranks: Ranks | None = None,
    resume_command: Callable[[str], str] | None = None,
) -> RunResult:
    """Train a spec of `load_spec` in a run directory, then pack and score it unless not `finish`.

    `run` is the name, by default SPEC-ENGINE-N; `log` names sinks: trackio, wandb, tensorboard. Without an `observer`
    plain lines go to stderr. `run.path` of the result is what `load` takes, `finished.score` the score.
    """
    # What training needs takes half a second to import, which no other function waits for.
    from rich.console import Console

    from shared.sinks.following import Sinks
    from shared.training.run import train_run
    from shared.views.plain import PlainObserver

    with observer or PlainObserver(Console(stderr=True)) as watching, Sinks(log, watching.on_warning) as sinks:
        return train_run(
            spec,
            engine or default_training_engine(),
            watching,
            runs_dir=Path(runs_dir),
            run_name=run,
            resume=resume,
            finish=finish,
            profile=profile,
            ranks=ranks,
            resume_command=resume_command,
            on_event=sinks.on_event if log else None,
        )


def load(
    source: str | Path, *, weights: WeightsName | None = None, step: int | None = None, runs_dir: str | Path = RUNS
) -> Model:
    """A run, by name in `runs_dir` or by path, or an artifact file: the packed weights where there are any, or those
    named, of the checkpoint of `step`."""
    return load_trained(str(source), weights, step, Path(runs_dir))


def score(
    model: Model,
    *,
    data: str | None = None,
    engine: str | None = None,
    stride: int | None = None,
    max_symbols: int | None = None,
    progress: Progress | None = None,
    on_score: Callable[[Score], None] | None = None,
    state: ScoreState | None = None,
) -> ScoreDocument:
    """Bits per byte on the held-out text of a dataset, by default the spec's, with all that qualifies the figure.

    With `max_symbols` a fixed sample of its documents is scored; `stride` is in symbols. `progress` gets (symbols done,
    symbols in all), `on_score` what was measured, window by window. With a `state` a score that was stopped resumes.
    """
    from shared.training.run_data import check_target_data

    stream = open_split(data or model.spec.data.heldout, "heldout", model.spec.vocabulary)
    check_window(model.spec.model.seq_len, min(stream.num_symbols, max_symbols or stream.num_symbols))
    engine = engine or _own_engine(model)
    return evaluate(
        create_scorer(engine, model.spec, model.weights),
        stream,
        engine=engine,
        weights=model.weights_name,
        artifact_bytes=model.artifact_bytes,
        artifact_sha256=model.artifact_sha256,
        chosen=model.chosen,
        stride=stride,
        max_symbols=max_symbols,
        progress=progress,
        on_score=on_score,
        data_checks=check_target_data(model, stream),
        state=state,
        weights_hash=weights_sha256(model.weights) if state is not None else None,
    )


def generate(
    model: Model,
    prompt: str | bytes = "",
    num_bytes: int = 256,
    *,
    temperature: float = 0.8,
    top_p: float = 1.0,
    seed: int = 0,
    engine: str | None = None,
) -> Iterator[str]:
    """At most `num_bytes` of text that continues a prompt, piece by piece. Temperature 0 takes the likeliest symbol."""
    vocabulary = model.spec.vocabulary
    start = encode_prompt(vocabulary, prompt.encode() if isinstance(prompt, str) else prompt)
    scorer = create_scorer(engine or default_engine(), model.spec, model.weights)
    symbols = sample(scorer, start, num_bytes, temperature=temperature, top_p=top_p, seed=seed)
    return first_bytes(decode_text(symbols, vocabulary, start), num_bytes)


def encode(model: Model | Scorer, text: str | bytes) -> np.ndarray:
    """A text as the symbols that the model reads, int32 [T]: one document, with its start if the vocabulary has one."""
    return symbols_of(model.spec.vocabulary, text.encode() if isinstance(text, str) else text, "the text")


def scorer(model: Model, engine: str | None = None) -> Scorer:
    """The model on an engine, for the functions below: it is put there once for many texts.

    Nothing is compiled, because texts have many lengths.
    """
    return create_scorer(
        engine or default_engine(), with_overrides(model.spec, ["training.compile=false"]), model.weights
    )


def nats(model: Model | Scorer, text: str | bytes, *, stride: int | None = None) -> np.ndarray:
    """-ln p of each symbol of `encode(model, text)` given those before it: float [T], in the windows of a score.

    Bits per byte are their sum / ln 2 / bytes of the text. What qualifies a figure, an audit above all, `score` has.
    """
    asked = scorer(model) if isinstance(model, Model) else model
    return of_each_symbol(asked.score, asked.spec, encode(asked, text), stride)


def log_probs(model: Model | Scorer, text: str | bytes, *, stride: int | None = None) -> np.ndarray:
    """ln p of every symbol that could stand where `nats` has the one that does: float [T, V]."""
    asked = scorer(model) if isinstance(model, Model) else model
    return of_each_symbol(asked.log_probs, asked.spec, encode(asked, text), stride)


def import_documents(
    name: str, documents: Iterable[str], *, heldout_frac: float = DEFAULT_HELDOUT_FRAC, replace: bool = False
) -> ImportResult:
    """Make the dataset `name` of texts, each of them a document, for `data.train` and `data.heldout` of a spec.

    A generator will do. `bytetwin data import` makes one of files.
    """
    return import_texts(name, documents, heldout_frac=heldout_frac, replace=replace)


def compress(model: Model, content: bytes, *, engine: str | None = None) -> bytes:
    """A text coded with a packed model, as `bytetwin compress` writes it."""
    return codec(model, engine).compress(symbols_of(model.spec.vocabulary, content, "the text"))[0]


def decompress(model: Model, content: bytes, *, engine: str | None = None) -> bytes:
    """The text that `compress` coded with the same model, whole and checked. Raises DataError otherwise."""
    return codec(model, engine).decompress(content)[1]


def compare(
    runs: Sequence[str | Path | FinishedRun],
    *,
    baseline: str | None = None,
    level: float | None = None,
    margin_nats: float = 0.0,
    runs_dir: str | Path = RUNS,
) -> Comparison:
    """Compare experiments over seeds and documents, with the baseline, by default the first.

    Runs are finished ones, read already or named, and folders of them; those of one experiment differ in the seed.
    `level` is that of the intervals.
    """
    from shared.study.comparison import LEVEL, compare_groups
    from shared.study.groups import find_finished_runs, group_runs

    found = [run for run in runs if isinstance(run, FinishedRun)]
    names = [str(run) for run in runs if not isinstance(run, FinishedRun)]
    groups = group_runs([*found, *find_finished_runs(names, Path(runs_dir))])
    return compare_groups(groups, baseline=baseline, level=LEVEL if level is None else level, margin_nats=margin_nats)


def codec(model: Model, engine: str | None = None, adaptation: AdaptationSpec | None = None) -> Codec:
    """The coder of a packed model. Without an engine it takes what is fastest; `adaptation` replaces the spec's."""
    if model.artifact_sha256 is None:
        raise UserError(f"{model.source}: only a packed model can code, these are the {model.weights_name} weights")
    return Codec(model.spec, model.weights, model.artifact_sha256, engine, adaptation)


def _own_engine(model: Model) -> str:
    """The engine that trained the run, if it is installed, so that the same function is scored."""
    from shared.training.own_score import training_engine

    trained = training_engine(model.run) if model.run is not None else None
    return trained if trained in available_engines() else default_engine()

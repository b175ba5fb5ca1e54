"""`bytetwin pack --fill`: settings for every tensor under which code and artifact end just below the budget."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data.datasets import open_split
from data.stream import SymbolStream
from shared.artifact import Artifact, assemble, code_bytes, read_artifact, unpack_bytes
from shared.artifact.calibration import Calibration
from shared.artifact.curvature import needs_curvature
from shared.artifact.fill import DoesNotFitError
from shared.artifact.fill_model import Model
from shared.artifact.fill_search import Search, methods_of, search
from shared.artifact.sensitivity import Divergence, Weights
from shared.cli.command import CommandResult, console, number_type, positive, result_console
from shared.cli.scoring import default_engine, progress_bar, say_prose, say_warnings
from shared.cli.tables import make_table
from shared.engine.package import make_scorer_of
from shared.engine.protocol import Scorer
from shared.errors import UserError
from shared.files import write_atomically
from shared.model.initialise import with_neutral_logits
from shared.model.logits import logit_parameters
from shared.runs.target import CHOSEN_KEY, Target, refuse_run_artifact
from shared.scoring.bits_per_byte import Score, score_by_spec
from shared.spec import ArtifactSpec, QuantiserSpec, Spec
from shared.spec.artifact import Codec, MatrixQuantiserSpec, TensorQuantiserSpec
from shared.training.calibration import make_calibration
from shared.training.own_score import training_engine
from shared.training.packing import fit_packed
from shared.training.sources import VALIDATION_SEED

FILL_KEY = "fill"
"""The key in the free part of an artifact's header that says that its settings were chosen to fill a budget."""

SENSITIVITY_SYMBOLS = 8192
"""Of calibration text, for each measurement of a cost, which is then known to some 5 %."""

LOGIT_BYTES, LOGIT_RECORD_BYTES = 2, 400
"""Most bytes that a bias takes on its grid, and the record of what logits were fitted on."""

TWO_SIDED = QuantiserSpec(method="uniform", rounding="two_sided")
"""The settings with which a calibration measures everything that a tensor may need."""

MEASURED_SYMBOLS = 65_536
"""Most of the validation text that the finished artifact is compared with the float weights on."""


@dataclass(frozen=True)
class Measured:
    """The artifact against the float weights on validation text, in bits per byte: the difference of the losses with
    its standard error over documents, and the divergence, which is what is predicted. `bpb` is the artifact's score."""

    loss_bpb: float
    error_bpb: float
    divergence_bpb: float
    bpb: float
    text: str
    symbols: int
    bytes_per_symbol: float


def add_fill_arguments(parser: argparse.ArgumentParser) -> None:
    """--fill, --budget and --minutes."""
    group = parser.add_argument_group("filling a budget")
    group.add_argument(
        "--fill",
        action="store_true",
        help="choose the settings of every tensor so that code and artifact end just below the budget at the least "
        "predicted loss; needs --output",
    )
    group.add_argument("--budget", type=positive, metavar="BYTES", help="of code and artifact; default: the spec's")
    minutes = number_type(float, lambda value: 0.0 < value < float("inf"), "a number of minutes above 0")
    group.add_argument(
        "--keep-methods",
        action="store_true",
        help="store each tensor by the method of the spec, with its codec; default: that or uniform, with codec range",
    )
    group.add_argument(
        "--minutes",
        type=minutes,
        metavar="M",
        help="about how long the search may take after the calibration; default 10",
    )


def check_only_filling(args: argparse.Namespace) -> None:
    """Raise UserError for options that mean nothing without --fill."""
    given = {"--budget": args.budget, "--minutes": args.minutes, "--keep-methods": args.keep_methods or None}
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} is for --fill")


def fill_budget(args: argparse.Namespace, target: Target, spec: Spec, path: Path) -> CommandResult:
    """Search, write and measure; status 1 if nothing fits, or the file is over the spec's own budget."""
    refuse_run_artifact(path, "pack --fill")
    if spec.artifact.calibration.source == "none":
        raise UserError("--fill measures losses on calibration text: artifact.calibration.source must not be none")
    engine, limit = args.engine or default_engine(), args.budget or spec.budget.total_bytes
    say_warnings(console(), target)
    code = code_bytes(training_engine(target.run) if target.run else None, spec)
    if limit <= code:
        raise UserError(f"--budget {limit}: the code alone takes {code:,} bytes")
    stream = open_split(spec.data.heldout, "heldout", spec.vocabulary)
    # Two-sided rounding needs the curvature of the loss: gradients, measured of the tensors that a spec stores so.
    measures_all = engine != "numpy" and (needs_curvature(spec) or not args.keep_methods)
    with progress_bar(console(), f"calibrating on {engine}", "symbols") as progress:
        calibration = make_calibration(engine, all_two_sided(spec) if measures_all else spec, target.weights, progress)
    extra = _extra(target, calibration, limit)
    try:
        found = _search(args, engine, target, spec, calibration, limit - code - _logit_bytes(spec), extra)
    except DoesNotFitError as error:
        smallest = error.smallest_bytes
        say_prose(
            console(),
            f"nothing fits {limit:,} bytes: with {code:,} bytes of code the smallest artifact, of {smallest:,}, "
            f"makes {smallest + code:,}",
            "red",
        )
        return CommandResult({"fits": False, "smallest_bytes": smallest, "code_bytes": code, "limit_bytes": limit}, 1)
    found = _with_logits(args, engine, spec, found, extra)
    write_atomically(path, found.filled.content)
    artifact = read_artifact(path)
    measured = _measure(engine, target, artifact, stream)
    _print(result_console(args), path, found, measured, code, limit)
    return CommandResult(_document(path, target, found, measured, code, limit, artifact.info.sha256))


def all_two_sided(spec: Spec) -> Spec:
    """The spec with two-sided rounding of every tensor but the tables of n-grams, which are judged by how often each
    row is read: in a sixth of the time that found a better artifact (records/2026-11-26-quantisation.md)."""
    artifact = ArtifactSpec(
        matrix=MatrixQuantiserSpec(**TWO_SIDED.model_dump()),
        embed=TWO_SIDED,
        head=TWO_SIDED,
        tensors=(TensorQuantiserSpec(pattern="ngram_embed.tables.*"),),
        calibration=spec.artifact.calibration,
    )
    return spec.model_copy(update={"artifact": artifact})


def _logit_bytes(spec: Spec) -> int:
    """Room for logits, which are fitted once all else is chosen, and for the record of their text."""
    count = sum(parameter.count for parameter in logit_parameters(spec))
    return LOGIT_BYTES * count + LOGIT_RECORD_BYTES if count else 0


def _codec(args: argparse.Namespace, spec: Spec) -> Codec:
    return spec.artifact.codec if args.keep_methods else "range"


def _with_logits(args: argparse.Namespace, engine: str, spec: Spec, found: Search, extra: dict[str, Any]) -> Search:
    """What was found, with logits fitted to its artifact where the spec has any."""
    artifact = unpack_bytes(found.filled.content)
    with progress_bar(console(), f"fitting logits on {engine}", "symbols") as progress:
        tensors, fit = fit_packed(spec, artifact.tensors, make_scorer_of(engine, spec), progress=progress)
    if fit is None:
        return found
    coding = spec.artifact.model_copy(update={"codec": _codec(args, spec)})
    content, _ = assemble(spec, tensors, extra | fit.extra(), coding)
    return replace(found, filled=replace(found.filled, content=content))


def _extra(target: Target, calibration: Calibration, limit: int) -> dict[str, Any]:
    extra = {FILL_KEY: {"limit_bytes": limit}, **calibration.extra()}
    return extra | ({CHOSEN_KEY: target.chosen.model_dump()} if target.chosen is not None else {})


def _search(
    args: argparse.Namespace,
    engine: str,
    target: Target,
    spec: Spec,
    calibration: Calibration,
    limit: int,
    extra: dict[str, Any],
) -> Search:
    windows = calibration.windows
    windows = windows[: max(1, -(-SENSITIVITY_SYMBOLS // windows.shape[1]))]
    methods = methods_of(spec, calibration.statistics, args.keep_methods)
    model = Model(spec, with_neutral_logits(spec, target.weights), methods, calibration.statistics, _codec(args, spec))
    with progress_bar(console(), "reading the calibration text", "tensors") as bar:
        divergence = Divergence(make_scorer_of(engine, spec), target.weights, windows)
        seconds = 60.0 * (args.minutes or 10.0)
        return search(model, divergence, limit, extra, seconds, lambda done, total, what: bar(done, total, what))


def _measure(engine: str, target: Target, artifact: Artifact, stream: SymbolStream) -> Measured:
    spec = artifact.spec
    sample = stream.sample_documents(min(spec.evaluation.val_symbols, MEASURED_SYMBOLS), VALIDATION_SEED)
    scorer_of = make_scorer_of(engine, spec)
    with progress_bar(console(), "scoring the float weights", "symbols") as progress:

        def score(weights: Weights, what: str) -> Score:
            scorer: Scorer = scorer_of(weights)
            return score_by_spec(scorer, sample, progress=lambda done, total: progress(done, total, what))

        before, after = (
            score(target.weights, "scoring the float weights"),
            score(artifact.weights, "scoring the artifact"),
        )
    bits = 1.0 / math.log(2.0) / after.bytes
    differences = after.by_document.nats - before.by_document.nats
    loss = float(differences.sum()) * bits
    # Each document against its share of the whole loss, by its bytes.
    rest = differences * bits - loss * after.by_document.bytes / after.bytes
    error = math.sqrt(float((rest**2).sum()))
    windows = _windows(sample, spec.model.seq_len, SENSITIVITY_SYMBOLS)
    divergence = Divergence(scorer_of, target.weights, windows).of(artifact.weights)
    divergence_bpb = divergence / math.log(2.0) * after.symbols / after.bytes
    return Measured(loss, error, divergence_bpb, after.bpb, sample.name, after.symbols, after.bytes / after.symbols)


def _windows(text: SymbolStream, length: int, symbols: int) -> NDArray[np.int32]:
    """Windows from all over a text, or its only one with zeros behind it: int32 [N, length]."""
    count = max(1, min(-(-symbols // length), text.num_symbols // length))
    starts = np.linspace(0, max(0, text.num_symbols - length), count).astype(int).tolist()
    rows = [text.read(start, min(length, text.num_symbols)) for start in starts]
    return np.stack([np.pad(row, (0, length - len(row))) for row in rows]).astype(np.int32)


def _print(out: Console, path: Path, found: Search, measured: Measured, code: int, limit: int) -> None:
    filled, to_bpb = found.filled, _to_bpb(measured)
    numbers = ("weights", "bytes", "bits each", "predicted loss, 1e-6 bpb")
    table = make_table(f"{path}: {filled.artifact_bytes:,} bytes", ("tensor", "stored"), numbers)
    for name, made in filled.stored.items():
        size = made.tensor.shape[0] * made.tensor.shape[1]
        cells = (f"{size:,}", f"{made.bits / 8:,.0f}", f"{made.bits / size:.3f}")
        loss = 1e6 * filled.nats[name] * to_bpb
        table.add_row(name.removesuffix(".weight"), settings_text(made.settings), *cells, f"{loss:.1f}")
    out.print(table)
    total = filled.artifact_bytes + code
    say_prose(
        out,
        f"{filled.artifact_bytes:,} artifact + {code:,} code = {total:,} bytes of {limit:,}: {limit - total:,} left",
    )
    if filled.is_finest:
        say_prose(out, "every tensor is at its finest setting: there is nothing to gain from more bytes", "yellow")
    if filled.pruned_codes:
        say_prose(out, f"{filled.pruned_codes:,} codes of 1 and -1 were made 0 for the last bytes")
    say_prose(
        out,
        f"loss: predicted {found.together_nats * to_bpb:.6f} bits per byte, the divergence on {found.symbols:,} "
        f"symbols of calibration text; the sum over tensors is {filled.predicted_nats * to_bpb:.6f}",
    )
    say_prose(
        out,
        f"measured on the validation text ({measured.text}): a divergence of {measured.divergence_bpb:.6f}; losses of "
        f"{measured.loss_bpb:+.6f} +- {measured.error_bpb:.6f} on {measured.symbols:,} symbols, where the artifact has "
        f"{measured.bpb:.4f} bits per byte",
    )


def settings_text(settings: QuantiserSpec) -> str:
    """The settings that were chosen, in a few words."""
    words = {
        "uniform": f"uniform step {settings.step:.4g}" + (f", trellis {settings.trellis}" if settings.trellis else ""),
        "sd_clip": f"sd_clip {settings.bits}, {settings.clip_sd:.4g} sd",
        "ternary": f"ternary by {settings.group}",
    }
    text = words.get(settings.method, f"{settings.method} {settings.bits}")
    return f"{text}, lqer {settings.lqer_rank}" if settings.lqer_rank else text


def _to_bpb(measured: Measured) -> float:
    """Bits per byte of a nat per symbol."""
    return 1.0 / math.log(2.0) / measured.bytes_per_symbol


def _document(
    path: Path, target: Target, found: Search, measured: Measured, code: int, limit: int, sha256: str
) -> dict[str, Any]:
    filled, to_bpb = found.filled, _to_bpb(measured)
    rows = [
        {
            "name": name,
            "settings": made.settings.model_dump(),
            "bytes": made.bits / 8,
            "predicted_loss_bpb": filled.nats[name] * to_bpb,
            "sensitivity_nats_per_error": found.sensitivities[name].predicted_nats(1.0),
            "error": made.error,
        }
        for name, made in filled.stored.items()
    ]
    total = filled.artifact_bytes + code
    return {
        "artifact": str(path),
        "weights": target.weights_name,
        "step": target.step,
        "artifact_bytes": filled.artifact_bytes,
        "code_bytes": code,
        "limit_bytes": limit,
        "total_bytes": total,
        "fits": total <= limit,
        "finest": filled.is_finest,
        "pruned_codes": filled.pruned_codes,
        "encodings": found.encodings,
        "predicted_loss_bpb": found.together_nats * to_bpb,
        "sum_loss_bpb": filled.predicted_nats * to_bpb,
        "measured_loss_bpb": measured.loss_bpb,
        "measured_error_bpb": measured.error_bpb,
        "measured_divergence_bpb": measured.divergence_bpb,
        "measured_text": measured.text,
        "measured_symbols": measured.symbols,
        "tensors": rows,
        "sha256": sha256,
    }

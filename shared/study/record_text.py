"""The README of a record, written from its figures alone, so that the two cannot differ."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import RunError
from shared.model import parameter_counts, parameter_manifest
from shared.parsing import parse_json
from shared.runs.finished_run import FinishedRun
from shared.scoring.confidence import student_quantile
from shared.script.build import training_requirements
from shared.spec import QuantiserSpec, Spec
from shared.study.record import PREFLIGHT_FILE, SCORE_SCRIPT, TRAIN_SCRIPT, deviation, trained_on
from shared.study.significance import Significance
from shared.units import counted

LEVEL = 0.99


def default_blurb(results: Sequence[FinishedRun]) -> str:
    """One sentence on the model and its training."""
    spec, result = results[0].spec, results[0]
    model = spec.model
    if spec.vocabulary.reads_tokens:
        reads = f"tokens of a vocabulary of {spec.vocabulary.size:,}"
    else:
        reads = f"{model.patch_size} bytes at a time" if model.patch_size > 1 else "single bytes"
        reads += ", no tokenizer"
    counts = parameter_counts(spec)
    return (
        f"A model over {reads}: {model.num_layers} layers of {model.model_dim}, "
        f"{counts['total']:,} parameters in {result.artifact_bytes:,} bytes, trained for "
        f"{result.train_s:.0f} s ({result.steps:,} steps) on {result.device}."
    )


def readme(results: Sequence[FinishedRun], document: Mapping[str, Any], against: Significance | None = None) -> str:
    """README.md of the record whose submission.json is `document`, with the answer to whether another is beaten."""
    lines = [f"# {document['name']}", "", _headline(results), "", str(document["blurb"]), ""]
    lines += ["## Scores", "", *_score_table(results, document), ""]
    if against is not None:
        lines += ["## Against another record", "", f"{against.text}.", ""]
    lines += ["## What was scored", "", *_bullets(_protocol(results)), ""]
    lines += ["## Make it again", "", *_commands(results), ""]
    lines += ["## The model", "", *_model(results[0].spec), ""]
    lines += ["## Machine", "", *_bullets(_machine(results)), ""]
    return "\n".join(lines)


def _headline(results: Sequence[FinishedRun]) -> str:
    scores = [result.score.bpb for result in results]
    mean, spread = statistics.fmean(scores), deviation(scores)
    if spread is None:
        return f"**{mean:.4f} bits per byte** (one seed)"
    half = student_quantile(0.5 + LEVEL / 2.0, len(scores) - 1) * spread / math.sqrt(len(scores))
    return (
        f"**{mean:.4f} bits per byte** (mean of {len(scores)} seeds, standard deviation {spread:.4f}, "
        f"{LEVEL:.0%} interval of the mean {mean - half:.4f} to {mean + half:.4f})"
    )


def _score_table(results: Sequence[FinishedRun], document: Mapping[str, Any]) -> list[str]:
    lines = [
        "| seed | bits per byte | nats per symbol | over documents | steps | training s | artifact | with code |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        within = result.score.confidence
        low, high = within.low_bpb, within.high_bpb
        interval = "none" if low is None or high is None else f"{within.level:.0%}: {low:.4f} to {high:.4f}"
        lines.append(
            f"| {result.seed} | {result.score.bpb:.4f} | {result.score.nats_per_symbol:.4f} | {interval} | "
            f"{result.steps:,} | {result.train_s:.1f} | {result.artifact_bytes:,} | "
            f"{result.artifact_bytes + document['bytes_code']:,} |"
        )
    if document["val_bpb_std"] is not None:
        lines.append(f"| mean | {document['val_bpb']:.4f} | {document['val_loss']:.4f} | | | | | |")
        lines.append(f"| std (ddof 1) | {document['val_bpb_std']:.4f} | {document['val_loss_std']:.4f} | | | | | |")
    lines += [
        "",
        f"The limit is {results[0].score.limit_bytes:,} bytes of code and artifact together. The code is "
        f"`{TRAIN_SCRIPT}`, {document['bytes_code']:,} bytes.",
    ]
    return lines


def _protocol(results: Sequence[FinishedRun]) -> list[str]:
    score = results[0].score
    whole = "all of it" if score.dataset.complete else "a fixed sample of its documents"
    others = ", ".join(f"{name} {item.bpb:.4f}" for name, item in score.compressors.items())
    facts = [
        f"Text: held-out part of {score.dataset.name}, {whole}: {counted(score.bytes, 'byte')}, "
        f"{counted(score.documents, 'document')}, sha256 {score.dataset.scored_sha256}",
        f"Protocol: {counted(score.symbols, 'symbol')}, each once, {score.windows_text}, the packed weights "
        "read back from artifact.btw",
    ]
    if others:
        facts.append(f"The same text with general compressors, bits per byte: {others}")
    for result in results:
        checks = ", ".join(
            f"{check.name}{' (warning)' if check.warning else ''}" for check in result.score.audit.checks
        )
        packing = result.ending.get("packing", {}).get("difference_bpb")
        cost = "" if packing is None else f"; packing cost {packing:+.4f} bits per byte on the validation sample"
        facts.append(f"Seed {result.seed}: audit passed: {checks}{cost}")
        facts += [f"Seed {result.seed}: {problem}" for problem in result.ending.get("problems", [])]
    return facts


def _commands(results: Sequence[FinishedRun]) -> list[str]:
    """Commands that train each seed again from this folder."""
    lines = ["```"]
    for result in results:
        words = ["bytetwin", "train", "spec.toml", "--engine", result.score.engine]
        if result.ranks > 1:
            words += ["--ranks", str(result.ranks)]
        lines.append(shlex.join([*words, "--set", f"training.seed={result.seed}"]))
    first = f"seed{results[0].seed}"
    lines += [f"bytetwin score {first}/artifact.btw", f"bytetwin audit {first}/artifact.btw", "```"]
    where = "Without bytetwin, with the datasets in a folder `datasets` beside the scripts:"
    packages = training_requirements(trained_on(results), results[0].spec)
    lines += ["", where, "", "```", " ".join(["python -m pip install", *map(_quoted, packages)])]
    lines += [f"python {TRAIN_SCRIPT} train", f"python {SCORE_SCRIPT} {first}/artifact.btw", "```"]
    return [*lines, "", "What was typed, and all versions: `environment.json` of each seed."]


def _quoted(word: str) -> str:
    """A word for a shell, readable where it has quotes in it."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _model(spec: Spec) -> list[str]:
    model, training = spec.model, spec.training
    rows = [
        ("layers, width, heads", f"{model.num_layers}, {model.model_dim}, {model.num_heads} over {model.num_kv_heads}"),
        ("window, patch", f"{model.seq_len} symbols, {model.patch_size} bytes"),
        ("parameters", ", ".join(f"{name} {count:,}" for name, count in parameter_counts(spec).items() if count)),
        ("batch", f"{training.batch_symbols:,} symbols, {training.dtype}"),
        (
            "schedule",
            f"by {spec.schedule.driver}, limit {training.time_limit_s:g} s" if training.time_limit_s else "by steps",
        ),
        ("weights", ", ".join(_storage(spec))),
    ]
    return ["| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in rows], "", "All of it: `spec.toml`."]


def _storage(spec: Spec) -> list[str]:
    """How each class of tensors is stored, then those that have settings of their own."""
    artifact, present = spec.artifact, {parameter.quantisation for parameter in parameter_manifest(spec)}
    classes = (
        ("matrix", "matrices", artifact.matrix),
        ("embedding", "embeddings", artifact.embed),
        ("head", "heads", artifact.head),
    )
    found = [f"{name} {_stored(settings)}" for kind, name, settings in classes if kind in present]
    return found + [f"`{rule.pattern}` {_stored(rule)}" for rule in artifact.tensors]


def _stored(settings: QuantiserSpec) -> str:
    """`6 bits (row_max)`, `steps of 0.02 loss (uniform, two_sided)`: what sets the width of a code, and the method."""
    how = settings.method + ("" if settings.rounding == "nearest" else f", {settings.rounding}")
    if settings.method == "uniform":
        return f"steps of {settings.step:g} {settings.step_unit} ({how})"
    return how if settings.method == "ternary" else f"{settings.bits} bits ({how})"


def _machine(results: Sequence[FinishedRun]) -> list[str]:
    facts = []
    for result in results:
        environment = result.environment
        git = environment.get("git") or {}
        commit = str(git.get("commit", "unknown"))[:12] + (", with changed files" if git.get("modified") else "")
        starts = len(environment.get("earlier_starts", [])) + 1
        resumed = "" if starts == 1 else f", resumed {counted(starts - 1, 'time')}"
        facts.append(
            f"Seed {result.seed}: {result.device}, {environment.get('platform')}, "
            f"Python {environment.get('python')}, source {commit}, started {environment.get('started')}{resumed}"
        )
        preflight = _preflight(result.path / PREFLIGHT_FILE)
        if preflight is not None:
            # Rows that were overridden, and those that said risk.
            forced, risks = (list(map(str, preflight.get(key, []))) for key in ("forced", "risks"))
            verdict = "go" if preflight.get("go") else "no-go"
            facts.append(
                f"Seed {result.seed}: preflight said {verdict} ({PREFLIGHT_FILE})"
                + (f", at risk: {', '.join(risks)}" if risks else "")
                + (f", overridden by hand: {', '.join(forced)}" if forced else "")
            )
    return facts


def _preflight(path: Path) -> dict[str, Any] | None:
    """The document of the preflight before a run, if it has one."""
    if not path.exists():
        return None
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(values.get(key, []), list) for key in ("forced", "risks")):
        raise RunError(f"{path}: not the document of a preflight")
    return values


def _bullets(facts: Sequence[str]) -> list[str]:
    return [f"- {fact}" for fact in facts]

"""From a wish to a spec: shapes that fit the bytes, what each is expected to score in the time, and the best of them
(docs/techniques.md 12.9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shared.artifact.budget import code_bytes
from shared.artifact.predict import Prediction, predict_artifact_bytes
from shared.errors import UserError
from shared.model import parameter_counts
from shared.plan.loss import Expectation, expected_score
from shared.plan.speed import Speed, Wish, find_speed
from shared.runs.measured import MeasuredRow, measured_rows
from shared.spec import Spec, load_spec, with_overrides

# Of the uniform quantiser, in deviations. A step s costs STEP_COST s^2 bits per byte: 0.0592 at 0.45 and 0.1127 at 0.6,
# 10.3 M weights trained on an H200 (records/2026-11-26-quantisation.md).
STEPS, STEP_COST = (0.085, 0.12, 0.17), 0.3
MORE_LAYERS = (-2, 0, 2)
GPUS = ("H100", "H200")
HEAD_DIM, MOST_WIDTH = 64, 2048
NARROWER = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
# A GPU's part of a batch is at least this long, and a run has so many steps rather than the preset's batch.
LEAST_PART, ENOUGH_STEPS = 131_072, 4000
# Expectations that lie closer than this are not told apart: means over seeds in records/ so close have no verdict.
NOTHING_BPB = 0.015
# Fewer train nothing, as preflight says too. A run by the clock may make this much more than is expected.
FEWEST_STEPS, SPARE = 20, 1.5


@dataclass(frozen=True)
class Candidate:
    """A shape that fits: bytes as predicted for `steps` steps, `symbols` in the time at `per_s`."""

    label: str
    spec: Spec
    parameters: int
    artifact: Prediction
    code_bytes: int
    per_s: float
    steps: int
    expected: Expectation

    @property
    def symbols(self) -> int:
        """Symbols that the run sees."""
        return self.steps * self.spec.training.batch_symbols

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        artifact = {name: value for name, value in asdict(self.artifact).items() if name != "how"}
        return {
            "label": self.label,
            "parameters": self.parameters,
            "artifact": artifact,
            "code_bytes": self.code_bytes,
            "symbols_per_s": self.per_s,
            "steps": self.steps,
            "symbols": self.symbols,
            "expected": asdict(self.expected),
        }


@dataclass(frozen=True)
class Plan:
    """The shapes that fit: the chosen one, then the others from the best expected score on. `text` is what their scores
    were measured on."""

    candidates: tuple[Candidate, ...]
    speed: Speed
    text: str

    @property
    def chosen(self) -> Candidate:
        """The shape that is expected to score best, or the surest of those that are not told apart from it."""
        return self.candidates[0]

    @property
    def num_alike(self) -> int:
        """How many others are not told apart from the one that is expected to score best."""
        return len(_alike(self.candidates)) - 1


def make_plan(wish: Wish, announce: Callable[[str], None] = lambda what: None) -> Plan:
    """Compare shapes and choose. Raises UserError where none fits the bytes or trains in the time."""
    announce("speed")
    speed = find_speed(wish)
    announce("sizes")
    kind = [row for row in measured_rows() if (row.device in GPUS) == speed.on_gpu]
    same = [row for row in kind if row.bpb is not None and row.spec.vocabulary.reads_tokens == wish.tokens]
    # On a GPU scores are those of any, elsewhere of the device whose speeds they are.
    rows = [row for row in same if speed.on_gpu or row.device == speed.rows[0].device]
    rows = list({row.shape: row for row in reversed(rows)}.values())[::-1]
    shapes = _gpu_shapes(rows[0], wish) if speed.on_gpu else _laptop_shapes(rows, wish)
    found, least = [], math.inf
    for label, row, sizes, shape in shapes:
        fitting = _widest(sizes, shape, wish, speed)
        if not isinstance(fitting, Spec):
            least = min(least, fitting)
            continue
        each = _candidate(label, row, fitting, wish, speed, kind)
        needs = each.artifact.high_bytes + each.code_bytes
        # With row maxima the bytes also depend on the number of steps, which was not known before.
        if needs <= wish.total_bytes:
            found.append(each)
        least = min(least, needs)
    if not found:
        raise UserError(f"--bytes {wish.total_bytes}: no shape fits, the smallest may take {least:,.0f} with its code")
    trained = [each for each in found if each.steps >= FEWEST_STEPS]
    if not trained:
        most = max(each.steps for each in found)
        raise UserError(f"--minutes {wish.minutes:g}: time for {most} steps, at least {FEWEST_STEPS} are needed")
    chosen = min(_alike(trained), key=lambda each: each.expected.high_bpb)
    others = sorted((each for each in trained if each is not chosen), key=lambda each: each.expected.bpb)
    return Plan((chosen, *others), speed, rows[0].text)


def _alike(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that are not told apart from the one that is expected to score best."""
    best = min(each.expected.bpb for each in candidates)
    return [each for each in candidates if each.expected.bpb < best + NOTHING_BPB]


Shapes = Iterator[tuple[str, MeasuredRow, Sequence[float], Callable[[float], Spec]]]


def _gpu_shapes(row: MeasuredRow, wish: Wish) -> Shapes:
    """(label, measured row, widths, spec of a width) of the preset with more and fewer layers and steps of codes."""
    preset = load_spec(row.preset)
    for more in MORE_LAYERS:
        for step in STEPS:
            layers = preset.model.num_layers + more
            words = [f"model.num_layers={layers}", "artifact.codec=range", "artifact.matrix.method=uniform"]
            words += ["artifact.matrix.rounding=gptq", f"artifact.matrix.step={step}"]

            def shape(width: float, words: list[str] = words) -> Spec:
                heads = int(width) // HEAD_DIM
                model = preset.model
                mlp = max(1, round(model.mlp_dim / model.model_dim * width / HEAD_DIM)) * HEAD_DIM
                sizes = [f"model.model_dim={int(width)}", f"model.head_dim={HEAD_DIM}", f"model.mlp_dim={mlp}"]
                sizes += [f"model.num_heads={heads}", f"model.num_kv_heads={heads // 2 if heads % 2 == 0 else heads}"]
                return with_overrides(preset, [*words, *sizes])

            yield f"{layers} layers, step {step:g}", row, range(HEAD_DIM, MOST_WIDTH + 1, HEAD_DIM), shape


def _laptop_shapes(rows: Sequence[MeasuredRow], wish: Wish) -> Shapes:
    """The same of every measured shape as it is, or narrower where it does not fit."""
    for row in rows:
        data = [
            f"data.{part}=fineweb-sp{row.spec.vocabulary.vocab_size}" for part in ("train", "heldout") if wish.tokens
        ]
        base = load_spec("laptop", [*row.settings, *data])

        def shape(frac: float, base: Spec = base) -> Spec:
            return base if frac == 1.0 else with_overrides(base, _narrower(base, frac))

        yield row.label, row, NARROWER, shape


def _narrower(spec: Spec, frac: float) -> list[str]:
    """The overrides that make trunk and decoder narrower, with as many heads of whole pairs of dimensions."""
    model, decoder = spec.model, spec.model.decoder
    head = max(1, round(model.head_dim * frac / 2)) * 2
    inner = max(1, round(decoder.dim * frac / (2 * decoder.num_heads))) * 2 * decoder.num_heads
    return [
        f"model.model_dim={head * model.num_heads}",
        f"model.head_dim={head}",
        f"model.attention.rope_dims={min(head, model.attention.rope_dims)}",
        f"model.mlp_dim={max(8, round(model.mlp_dim * frac / 8) * 8)}",
        f"model.decoder.dim={inner}",
        f"model.decoder.mlp_dim={max(8, round(decoder.mlp_dim * frac / 8) * 8)}",
    ]


def _widest(sizes: Sequence[float], shape_of: Callable[[float], Spec], wish: Wish, speed: Speed) -> Spec | float:
    """The spec of the largest size that fits by the high estimate, or the bytes that the smallest takes.

    Bytes follow the number of weights, so few predictions are needed.
    """

    def shape(size: float) -> Spec:
        return with_overrides(shape_of(size), wish.overrides)

    code = code_bytes(speed.engine, shape(sizes[0]))

    def needed(spec: Spec) -> int:
        return predict_artifact_bytes(spec).high_bytes + code

    largest = shape(sizes[-1])
    needs = needed(largest)
    if needs <= wish.total_bytes:
        return largest
    per_weight = (needs - code) / parameter_counts(largest)["total"]
    fitting = [size for size in sizes if code + per_weight * parameter_counts(shape(size))["total"] <= wish.total_bytes]
    for size in reversed(fitting or sizes[:1]):
        needs = needed(spec := shape(size))
        if needs <= wish.total_bytes:
            return spec
    return float(needs)


def _candidate(
    label: str, row: MeasuredRow, spec: Spec, wish: Wish, speed: Speed, rows: Sequence[MeasuredRow]
) -> Candidate:
    """The shape with batch and length of the wish, and its expected score."""
    per_s = speed.per_s(spec, row)
    symbols = per_s * 60.0 * wish.minutes
    spec = _for_the_time(spec, wish, symbols, speed.on_gpu)
    steps = int(symbols / spec.training.batch_symbols)
    parameters = parameter_counts(spec)["total"]
    expected = expected_score(row, parameters, max(1.0, symbols) * row.bytes_per_symbol, rows)
    if speed.on_gpu:
        cost = STEP_COST * spec.artifact.matrix.step**2
        low, high = expected.low_bpb + cost, expected.high_bpb + cost
        expected = replace(expected, bpb=expected.bpb + cost, low_bpb=low, high_bpb=high)
        label = f"{label}, {spec.model.model_dim} wide"
    elif spec.model.model_dim != row.spec.model.model_dim:
        label = f"{label}, {spec.model.model_dim} wide"
    artifact = predict_artifact_bytes(spec, max(1, steps))
    return Candidate(label, spec, parameters, artifact, code_bytes(speed.engine, spec), per_s, steps, expected)


def _for_the_time(spec: Spec, wish: Wish, symbols: float, on_gpu: bool) -> Spec:
    """The spec with a batch for these symbols, run by the clock."""
    batch, window = spec.training.batch_symbols, spec.model.seq_len * wish.gpus
    if on_gpu:
        while symbols / batch < ENOUGH_STEPS and batch // 2 >= LEAST_PART * wish.gpus:
            batch //= 2
        batch = max(window, batch // window * window)
    steps = max(1, int(symbols / batch))
    words = [
        f"budget.total_bytes={wish.total_bytes}",
        f"training.batch_symbols={batch}",
        f"training.micro_batch_symbols={0 if on_gpu else spec.training.micro_batch_symbols}",
        f"training.steps={math.ceil(SPARE * steps)}",
        f"training.time_limit_s={60.0 * wish.minutes}",
        "schedule.driver=time",
        f"training.ema_decay={min(spec.training.ema_decay, max(0.0, 1.0 - 10.0 / steps))}",
        f"training.val_every_steps={max(1, steps // 10)}",
        f"training.checkpoint_every_steps={max(1, steps // 10)}",
        f"optimizer.muon_momentum_warmup_steps={min(spec.optimizer.muon_momentum_warmup_steps, steps // 3)}",
    ]
    return with_overrides(spec, [*words, *wish.overrides])

"""The learner of an adapted score: an ordinary training engine, on a spec derived from the one that is scored.

So gradients, optimizers, compiled steps and ranks are those of training, on every engine (docs/techniques.md 14).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.engine.protocol import Engine, NonFiniteError, StepResult, Weights
from shared.errors import RunError
from shared.model.adapters import folded, trained_parameters
from shared.model.counted import uncounted
from shared.model.initialise import with_fresh_factors
from shared.model.stages import COUNTED
from shared.optim import step_hyperparameters
from shared.scoring.passes import Pass, Span, Tallied
from shared.spec import Spec, spec_from_dict, spec_to_dict
from shared.spec.adaptation import AdaptationSpec
from shared.spec.optimizer import DECAYS

# Of a training section, what the learner keeps: how its machine computes.
KEPT = ("seed", "dtype", "float32_products", "compile", "micro_batch_symbols", "memory_limit_bytes")
RATES = ("matrix_lr", "embed_lr", "head_lr", "scalar_lr", "adapter_lr")


def adaptation_spec(
    spec: Spec,
    rows: int,
    settings: AdaptationSpec | None = None,
    own_factors: bool = False,
    section: str = "evaluation.adaptation",
) -> Spec:
    """The spec of the learner: the function that is scored, trained by `settings` (default: the spec's own) on batches
    of `rows` windows, with `own_factors` each with factors of its own. No average, no quantisation, no auxiliary loss;
    the rate is constant, or falls as half a cosine over the progress. Raises SpecError where the patterns of `section`
    name no parameter.
    """
    settings = settings or spec.evaluation.adaptation
    values = spec_to_dict(spec)
    training, symbols = values["training"], rows * spec.model.seq_len
    values["training"] = {
        **{name: training[name] for name in KEPT},
        "steps": 1,
        "batch_symbols": symbols,
        "parameters": list(settings.parameters),
        "loss": {"counts": "marked"},
    }
    if settings.lora.rank:
        values["model"]["lora"] = {**settings.lora.model_dump(mode="json"), "rows": rows if own_factors else 0}
        values["training"]["freeze"] = "base"
    values["optimizer"] = _optimizer(settings) | {
        name: values["optimizer"][name] for name in ("ns_steps", "ns_coefficients", "ns_dtype")
    }
    cosine = settings.rate_shape == "cosine"
    values["schedule"] = {"warmdown_frac": float(cosine), "warmdown_shape": "cosine" if cosine else "linear"}
    values["evaluation"] = {"stride_symbols": spec.evaluation.stride_symbols}
    derived = spec_from_dict(values, origin="adaptation")
    trained_parameters(derived, f"{section}.parameters")
    return derived


def _optimizer(settings: AdaptationSpec) -> dict[str, object]:
    return {
        "form": settings.optimizer,
        **dict.fromkeys(RATES, settings.rate),
        "muon_momentum": settings.momentum,
        "muon_momentum_warmup_steps": 0,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        **{f"{kind}_weight_decay": settings.weight_decay for kind in DECAYS[settings.optimizer]},
        "grad_clip_norm": settings.clip_norm,
    }


def starting_weights(scored: Spec, derived: Spec, weights: Weights) -> dict[str, np.ndarray]:
    """The learner's weights before it learnt anything: those that are scored, float32. Where it learns factors, the
    model's own ones are added to their matrices, and fresh ones are there: the first random, the second zero."""
    if derived.training.freeze == "none":
        return dict(weights)
    return with_fresh_factors(derived, folded(scored.model, weights))


def lesson_rows(settings: AdaptationSpec, seq_len: int, stride: int, world_size: int = 1) -> int:
    """Rows of one optimizer step: a chunk in the fewest equal steps of at most batch_symbols, for all ranks alike."""
    rows = -(-max(settings.chunk_symbols, stride) // seq_len)
    steps = -(-rows // max(1, settings.batch_symbols // seq_len))
    rows = -(-rows // steps)
    return -(-rows // world_size) * world_size


def lessons(text: Tallied, span: Span, seq_len: int, rows: int) -> Iterator[np.ndarray]:
    """Batches [rows, seq_len] in which each symbol of a span counts once; the others are marked as `uncounted` does.

    A row counts as many symbols as there are, at most a window. A span shorter than a window is read with the symbols
    before it for context, as far as they reach back.
    """
    for first in range(span.start, span.stop, rows * seq_len):
        x = np.zeros((rows, seq_len), np.int32)
        counts = np.zeros(x.shape, bool)
        for row, start in enumerate(range(first, min(first + rows * seq_len, span.stop), seq_len)):
            stop = min(start + seq_len, span.stop)
            begin = max(0, stop - seq_len)
            x[row, : stop - begin] = text.read(begin, stop - begin)
            counts[row, start - begin : stop - begin] = True
        yield uncounted(x, counts)


class Learner:
    """An Adapter: one set of weights, or of factors, for the whole text."""

    def __init__(self, engine: Engine, settings: AdaptationSpec, weights: Weights, rows: int) -> None:
        """`engine` is of `adaptation_spec`, `weights` are its `starting_weights`, `rows` those of one step."""
        self.engine, self.settings, self.weights, self.rows = engine, settings, weights, rows
        self.steps = 0
        engine.initialise(weights)

    def score(self, x: np.ndarray) -> np.ndarray:
        return self.engine.score(x)

    def reset(self, chosen: Pass) -> None:
        if chosen.resets and self.steps:
            self.steps = 0
            self.engine.initialise(self.weights)

    def learn(self, chosen: Pass, text: Tallied) -> None:
        """Raises RunError where a step is not a number."""
        for span in chosen.learnt:
            batches = list(lessons(text, span, self.engine.spec.model.seq_len, self.rows))
            results = [self.step(x, chosen.progress) for _ in range(self.settings.epochs) for x in batches]
            self._check(results)

    def save_state(self) -> dict[str, np.ndarray]:
        """All that was learnt, and with what momentum: `Engine.save_state`, and the number of steps as `steps`."""
        return {**self.engine.save_state(), "steps": np.array([self.steps], np.float32)}

    def load_state(self, state: Weights) -> None:
        """Take over the result of `save_state`."""
        rest = dict(state)
        self.steps = int(rest.pop("steps")[0])
        self.engine.load_state(rest)

    def step(self, x: np.ndarray, progress: float) -> StepResult:
        """One optimizer step on a batch of `lessons`, at a progress that the rate follows."""
        numbers = step_hyperparameters(self.engine.spec, self.steps, progress, 0.0)
        self.steps += 1
        return self.engine.train_step(x, numbers.with_run({COUNTED: float(np.mean(x >= 0))}))

    def _check(self, results: list[StepResult]) -> None:
        try:
            for read in results:
                read()
        except NonFiniteError as error:
            raise RunError(str(error)) from None

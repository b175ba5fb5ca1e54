"""Documents that are learnt side by side: low-rank factors for each, and phases in which the weights learn too.

What reaches one document from others: nothing, but for the weights after a phase and, with a warm start, the first
factors. Both come from documents before it in the text that were scored to their ends (docs/techniques.md 14.6).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from shared.engine.leader import another
from shared.engine.protocol import Engine, NonFiniteError, Weights
from shared.errors import RunError
from shared.model.adapters import folded
from shared.model.counted import uncounted
from shared.model.initialise import with_fresh_factors
from shared.model.manifest import ADAPTER_A
from shared.model.stages import COUNTED
from shared.optim import step_hyperparameters
from shared.scoring.learner import Learner, adaptation_spec, lesson_rows, lessons
from shared.scoring.passes import Pass, Span, Tallied
from shared.spec import Spec
from shared.spec.adaptation import AdaptationSpec, PhasesSpec
from shared.spec.lora import LoraSpec

PHASES = "evaluation.adaptation.phases"


class DocumentLearner:
    """An Adapter: row i of a pass is a document with factors of its own, those of number i."""

    def __init__(self, engine: Engine, spec: Spec, weights: Weights, factors: Weights, rows: int) -> None:
        """`engine` is of `adaptation_spec` with `own_factors` for `rows`, `spec` the scored one without factors of its
        own, `weights` its weights, and `factors` those that a first document starts with."""
        self.engine, self.spec, self.rows = engine, spec, rows
        self.settings: AdaptationSpec = spec.evaluation.adaptation
        self.weights, self.factors = dict(weights), dict(factors)
        # Of documents that are done: the sums of their first factors, and how many they are.
        self.sums = {name: np.zeros_like(value) for name, value in factors.items() if name.endswith(ADAPTER_A)}
        self.done = self.steps = self.learning = 0
        self.is_fresh: int = False
        self._start()

    def score(self, x: np.ndarray) -> np.ndarray:
        return self.engine.score(_numbered(x))

    def reset(self, chosen: Pass) -> None:
        if not chosen.resets:
            return
        self._finish(0)
        if chosen.inherits and self.done:
            for name, total in self.sums.items():
                self.factors[name] = total / np.float32(self.done)
                total[:] = 0.0
            self.done, self.is_fresh = 0, False
        self._start()

    def learn(self, chosen: Pass, text: Tallied) -> None:
        """Raises RunError where a step is not a number."""
        self._finish(len(chosen.learnt))
        try:
            if chosen.learnt:
                self._learn_chunks(chosen, text)
            if chosen.base is not None:
                self._learn_base(chosen.base, text)
        except NonFiniteError as error:
            raise RunError(str(error)) from None

    def save_state(self) -> dict[str, np.ndarray]:
        """All that was learnt: `Engine.save_state`, and as `base/NAME`, `start/NAME` and `sum/NAME` the weights under
        the factors, what documents start with, and the sums over those that are done; `counts` has the numbers."""
        parts = {"base": self.weights, "start": self.factors, "sum": self.sums}
        counts = [self.done, self.steps, self.learning, self.is_fresh]
        return {
            **self.engine.save_state(),
            **{f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()},
            "counts": np.array(counts, np.float32),
        }

    def load_state(self, state: Weights) -> None:
        """Take over the result of `save_state`."""
        rest = dict(state)
        self.done, self.steps, self.learning, self.is_fresh = map(int, rest.pop("counts"))
        for part, values in (("base", self.weights), ("start", self.factors), ("sum", self.sums)):
            for name in values:
                values[name] = np.array(rest.pop(f"{part}/{name}"))
        self.engine.load_state(rest)

    def _start(self) -> None:
        """All rows begin with the same factors."""
        if not self.is_fresh:
            rows = {name: np.repeat(value[None], self.rows, axis=0) for name, value in self.factors.items()}
            self.engine.initialise(self.weights | rows)
            self.steps, self.is_fresh = 0, True

    def _learn_chunks(self, chosen: Pass, text: Tallied) -> None:
        """Each row learns its span, a chunk. A row's loss is the mean over its own symbols, whatever the others do."""
        x = np.zeros((self.rows, chosen.width), np.int32)
        counts = np.zeros(x.shape, bool)
        for row, (window, span) in enumerate(zip(chosen.windows, chosen.learnt, strict=False)):
            x[row, : span.stop - window.start] = text.read(window.start, span.stop - window.start)
            counts[row, span.start - window.start : span.stop - window.start] = True
        chunk = chosen.learnt[0].stop - chosen.learnt[0].start
        for _ in range(self.settings.epochs):
            numbers = step_hyperparameters(self.engine.spec, self.steps, 0.0, 0.0).with_run({COUNTED: chunk / x.size})
            self.engine.train_step(_numbered(uncounted(x, counts)), numbers)()
            self.steps += 1
        self.is_fresh, self.learning = False, len(chosen.learnt)

    def _finish(self, still: int) -> None:
        """Take over what documents learnt that now have nothing left to learn, all rows from `still` on."""
        if self.settings.warm_start and still < self.learning:
            factors = self.engine.export_weights("trained")
            for name, total in self.sums.items():
                total += factors[name][still : self.learning].sum(axis=0)
            self.done += self.learning - still
        self.learning = min(self.learning, still)

    def _learn_base(self, span: Span, text: Tallied) -> None:
        """The weights learn a span in a phase of their own, from which the next documents start."""
        settings, seq_len = _phase(self.settings.phases), self.spec.model.seq_len
        world_size, size = self.engine.ranks.world_size, span.stop - span.start
        rows = min(lesson_rows(settings, seq_len, seq_len, world_size), -(-size // (seq_len * world_size)) * world_size)
        total = settings.epochs * -(-size // (rows * seq_len))
        with another(self.engine, adaptation_spec(self.spec, rows, settings, section=PHASES)) as engine:
            learner = Learner(engine, settings, self.weights, rows)
            for _ in range(settings.epochs):
                for x in lessons(text, span, seq_len, rows):
                    learner.step(x, learner.steps / total)()
            self.weights = engine.export_weights("trained")
        self.is_fresh = False


@contextlib.contextmanager
def document_learner(engine: Engine, spec: Spec, weights: Weights, rows: int) -> Iterator[DocumentLearner]:
    """The adapter of a spec for `rows` documents side by side, on an engine of its own like the one given."""
    world_size = engine.ranks.world_size
    rows = -(-rows // world_size) * world_size
    plain = _plain(spec)
    derived = adaptation_spec(plain, rows, own_factors=True)
    first = {name: value[0] for name, value in with_fresh_factors(derived, {}).items()}
    with another(engine, derived) as learner:
        yield DocumentLearner(learner, plain, folded(spec.model, weights), first, rows)


def check_document_learner(spec: Spec) -> None:
    """Raise SpecError for settings of documents side by side that name no parameter."""
    plain, phases = _plain(spec), spec.evaluation.adaptation.phases
    adaptation_spec(plain, 1, own_factors=True)
    if phases.count:
        adaptation_spec(plain, 1, _phase(phases), section=PHASES)


def _plain(spec: Spec) -> Spec:
    """The spec without factors of its own."""
    return spec.model_copy(update={"model": spec.model.model_copy(update={"lora": LoraSpec()})})


def _numbered(x: np.ndarray) -> np.ndarray:
    """x [B, T] with the number of each row before it: [B, 1 + T] int32."""
    return np.concatenate([np.arange(len(x), dtype=np.int32)[:, None], x], axis=1)


def _phase(phases: PhasesSpec) -> AdaptationSpec:
    """How weights learn in a phase."""
    return AdaptationSpec(
        kind="score_first",
        chunk_symbols=phases.batch_symbols,
        batch_symbols=phases.batch_symbols,
        epochs=phases.epochs,
        optimizer="sgd",
        rate=phases.rate,
        rate_shape="cosine",
        momentum=phases.momentum,
        clip_norm=phases.clip_norm,
        parameters=phases.parameters,
    )

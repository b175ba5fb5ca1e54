"""The catalogue: every exhibit of the museum, and the checks that fail on it: these, and no other.

`README.md` tells each exhibit's history and names the same checks; `test_exhibits.py` holds the two together.
Each entry runs its exhibit in the smallest setting that shows the bug and returns the names of the checks that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import sentencepiece

from data.datasets import open_split
from data.token_bytes import TokenBytes
from data.tokenizer import Tokenizer
from shared.artifact import pack_bytes
from shared.artifact.calibration import LOGITS_KEY, make_record, training_record
from shared.engine.oracle import Oracle
from shared.engine.package import create_engine
from shared.engine.protocol import Engine, Scorer
from shared.engine.state import EngineState
from shared.model import Forward, forward, initial_weights, random_weights
from shared.optim import step_hyperparameters
from shared.scoring import evaluate as evaluation
from shared.scoring.adaptation import score_adapted
from shared.scoring.audit import audit_scorer
from shared.scoring.average_check import check_average
from shared.scoring.bits_per_byte import WindowPlan, score_by_spec, score_stream
from shared.scoring.calibration_check import check_calibration
from shared.scoring.checks import Check
from shared.scoring.gradient_check import GRADIENT_STEPS, check_gradients
from shared.scoring.later_text import ScoreText, check_later_text
from shared.scoring.overlap import check_overlap, check_selection
from shared.scoring.qat_check import check_qat_acts, check_qat_codes
from shared.scoring.windows import plan_windows
from shared.spec import Spec, load_spec
from tests.museum import (
    accounting,
    adapters,
    attention_leaks,
    averaging,
    contamination,
    dead_switch,
    late_text,
    leaks,
    ngrams,
    other_grid,
    packing,
    token_tables,
)
from tests.museum.fake_stream import FakeStream
from tests.token_text import caseops_tokenizer, documents, small_tokenizer, token_spec, token_stream

SMALL = (
    *("model.num_layers=2", "model.seq_len=48", "training.batch_symbols=480", "evaluation.batch_symbols=480"),
    "training.compile=false",
)
NGRAMS = ("model.ngram.rows=97", "model.ngram.dim=8")
DOCUMENTS = ("vocabulary.kind=byte260", "model.attention.document_mask=true")
# Windows in which every 128th position is one.
LONG = ("model.seq_len=144", "training.batch_symbols=2304", "evaluation.batch_symbols=2304")
PLAIN = ("model.patch_size=1", "model.decoder.kind=linear")

ADAPTATION = (
    *("evaluation.batch_symbols=48", "evaluation.stride_symbols=24", "evaluation.adaptation.kind=score_first"),
    *("evaluation.adaptation.chunk_symbols=48", "evaluation.adaptation.rate=0.01"),
)

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Exhibit:
    """A planted bug: the object itself, the checks that fail on it, and how to run them. One that shows in any
    score has its scorer too, and the changes to the spec `tiny` that it takes."""

    planted: Callable[..., object]
    caught_by: tuple[str, ...]
    failing: Callable[[], list[str]]
    scorer: Callable[[Spec, Weights], Scorer] | None = None
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As README.md lists it."""
        module = self.planted.__module__.rpartition(".")[2]
        return f"{module}.{self.planted.__name__}"


def small_spec(*overrides: str) -> Spec:
    return load_spec("tiny", [*SMALL, *overrides])


def _text(spec: Spec, kind: type[FakeStream] = FakeStream) -> FakeStream:
    """Words between blanks, in documents whose ends fit no window."""
    rng = np.random.default_rng(0)
    words = [b"the cat sat on the mat and then it ran off ", b"a byte is not a token is not a word "]
    return kind([b"".join(words[word] for word in rng.integers(0, 2, 4)) for _ in range(9)], spec.vocabulary)


def _scored(
    planted: Callable[..., object],
    scorer: Callable[[Spec, Weights], Scorer],
    caught_by: tuple[str, ...],
    overrides: tuple[str, ...] = (),
) -> Exhibit:
    """A scorer, under the audit's checks of a model."""

    def failing() -> list[str]:
        spec = small_spec(*overrides)
        report = audit_scorer(scorer(spec, random_weights(spec, 0)), _text(spec))
        return [check.name for check in report.failures]

    return Exhibit(planted, caught_by, failing, scorer, (*SMALL, *overrides))


def _model(planted: Forward, caught_by: tuple[str, ...], *overrides: str) -> Exhibit:
    """A forward pass that reads too much."""
    return _scored(planted, lambda spec, weights: Oracle(spec, weights, planted), caught_by, overrides)


def _scorer(planted: type[accounting.WrappedScorer], *caught_by: str) -> Exhibit:
    """A scorer around an honest model."""
    return _scored(planted, lambda spec, weights: planted(Oracle(spec, weights)), caught_by)


def score_failures(
    stream_kind: type[FakeStream] = FakeStream, plan: WindowPlan = plan_windows, stride: int = 8, *overrides: str
) -> list[str]:
    """The checks that fail on a score of an honest model."""
    spec = small_spec(*overrides)
    oracle, stream = Oracle(spec, random_weights(spec, 0)), _text(spec, stream_kind)
    score = score_stream(oracle, stream, seq_len=48, stride=stride, batch_rows=16, confidence=0.95, plan=plan)
    return [check.name for check in audit_scorer(oracle, stream, score).failures]


def table_of_bytes(planted: type[TokenBytes], tokenizer_of: Callable[[], Tokenizer] = small_tokenizer) -> Exhibit:
    """A table of the bytes of every token."""

    def failing() -> list[str]:
        tokenizer = tokenizer_of()
        spec = token_spec({"vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.sha256})
        table = planted(sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content))
        texts = [text.title() for text in documents(24)]
        stream, oracle = token_stream(texts, tokenizer, table), Oracle(spec, random_weights(spec, 0))
        return [check.name for check in audit_scorer(oracle, stream, score_by_spec(oracle, stream)).failures]

    return Exhibit(planted, ("denominator",), failing)


def _folded_case() -> list[str]:
    stream = token_tables.folded_case("The Cat sat on the Mat and NASA saw it. " * 9)
    assert stream.folds_case and stream.text_bytes().islower()
    spec = token_spec({"vocab_size": stream.vocabulary.size})
    oracle = Oracle(spec, random_weights(spec, 0))
    return [check.name for check in audit_scorer(oracle, stream, score_by_spec(oracle, stream)).failures]


def _batch(spec: Spec) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, spec.model.seq_len)).astype(np.int32)


def _trained(spec: Spec, weights: Weights) -> Engine:
    """A torch engine after three steps."""
    engine = create_engine("torch", spec)
    engine.initialise(weights)
    for step in range(3):
        engine.train_step(_batch(spec), step_hyperparameters(spec, step, 0.9))()
    return engine


def _dead(
    planted: Callable[..., object], weights: Callable[[Spec], Weights], model: Forward, *overrides: str
) -> Exhibit:
    """Weights or a forward pass with parameters that no gradient ever reaches."""

    def failing() -> list[str]:
        spec = small_spec(*overrides)
        check = check_gradients(create_engine("torch", spec, model), weights(spec), [_batch(spec)] * GRADIENT_STEPS)
        return [] if check.passed else [check.name]

    return Exhibit(planted, ("gradients",), failing)


def _average(planted: Callable[[EngineState], None], *overrides: str) -> Exhibit:
    """An engine whose average is not what it is said to be."""

    def failing() -> list[str]:
        spec = small_spec(*overrides)
        engine = _trained(spec, random_weights(spec, 0))
        assert check_average(engine, _batch(spec)).passed and isinstance(engine, EngineState)
        planted(engine)
        return [check.name for check in [check_average(engine, _batch(spec))] if not check.passed]

    return Exhibit(planted, ("average",), failing)


def _chosen_by_validation() -> list[str]:
    spec = small_spec("data.selection_frac=0.05", "evaluation.val_symbols=480")
    heldout = open_split(spec.data.heldout, "heldout", spec.vocabulary)
    check = check_selection(averaging.choose_by_validation(spec, heldout).windows, heldout)
    return [] if check.passed else [check.name]


def _contaminated(planted: Callable[[Sequence[bytes], Sequence[bytes]], list[bytes]]) -> Exhibit:
    """A training text that has held-out text in it."""

    def failing() -> list[str]:
        rng = np.random.default_rng(0)
        documents = [rng.bytes(180).hex(" ", 3).encode() for _ in range(80)]
        training, heldout = documents[:40], documents[40:]
        check = check_overlap(FakeStream(heldout), FakeStream(planted(training, heldout)))
        return [] if check.passed else [check.name]

    return Exhibit(planted, ("overlap",), failing)


def _folded_switch() -> list[str]:
    """The flag does not hear of the engine's own switch, compiled or not."""
    import cuda_train.engine as torch_engine

    honest, spec = torch_engine.training_loss, small_spec("training.qat.form=straight_through")
    torch_engine.training_loss = dead_switch.flagged_loss
    try:
        engine = create_engine("torch", spec)
        engine.initialise(random_weights(spec, 0))
        check = check_qat_acts(engine, _batch(spec))
    finally:
        torch_engine.training_loss = honest
    return [] if check.passed else [check.name]


def _other_grid() -> list[str]:
    """The training loss rounds to another grid than the artifact of the spec."""
    from shared.model import qat

    honest, spec = qat.training_grid, small_spec("training.qat.form=straight_through")
    weights = random_weights(spec, 0)

    def checked() -> Check:
        return check_qat_codes(create_engine("torch", spec), weights, _batch(spec))

    assert checked().passed
    qat.training_grid = lambda spec, name: other_grid.FlooredScales(spec.training.qat.bits)
    try:
        check = checked()
    finally:
        qat.training_grid = honest
    return [] if check.passed else [check.name]


def _calibrated_on_heldout() -> list[str]:
    spec = small_spec("artifact.calibration.source=train", "artifact.calibration.windows=6")
    heldout = _text(spec)
    windows = packing.calibrate_on_heldout(spec, heldout)
    # It says what an honest calibration would: only its symbols give it away.
    check = check_calibration(make_record(spec, windows, ("fake/train", 64 * "0")), heldout, windows)
    return [] if check.passed else [check.name]


def _logits_fitted_on_heldout() -> list[str]:
    spec = small_spec("artifact.logits=temperature", "artifact.calibration.windows=6")
    heldout = _text(spec)
    windows = packing.fit_logits_on_heldout(spec, heldout)
    check = check_calibration(training_record(spec, windows, ("fake/train", 64 * "0")), heldout, windows, LOGITS_KEY)
    return [] if check.passed else [check.name]


def _late(planted: ScoreText) -> Exhibit:
    """A score with adaptation that knows later text, beside the honest one."""

    def failing() -> list[str]:
        spec = small_spec("model.seq_len=24", "training.batch_symbols=48", *ADAPTATION)
        scorer = create_engine("torch", spec)
        scorer.initialise(random_weights(spec, 0))
        text = _text(spec)
        assert check_later_text(score_adapted, scorer, text, seconds=0.0).passed
        check = check_later_text(planted, scorer, text, seconds=0.0)
        return [] if check.passed else [check.name]

    return Exhibit(cast(Callable[..., object], planted), ("later_text",), failing)


def _size_without_code() -> list[str]:
    spec = small_spec()
    honest, evaluation.code_bytes = evaluation.code_bytes, packing.artifact_alone
    try:
        weights = random_weights(spec, 0)
        size = len(pack_bytes(spec, weights))
        score = evaluation.evaluate(
            Oracle(spec, weights), _text(spec), engine="numpy", weights="packed", artifact_bytes=size
        )
    finally:
        evaluation.code_bytes = honest
    return [check.name for check in score.audit.checks if not check.passed]


EXHIBITS = (
    _model(leaks.itchy_byte_shift, ("future", "target"), "model.decoder.kind=mlp"),
    _model(leaks.megabyte_own_patch, ("future", "target")),
    _model(leaks.target_every_16th, ("target",), *LONG),
    _model(leaks.target_every_32nd, ("target",), *LONG),
    _model(leaks.target_every_64th, ("target",), *LONG),
    _model(leaks.target_every_128th, ("target",), *LONG),
    _model(leaks.target_at_one_position, ("target",), *LONG),
    _model(attention_leaks.smear_across_documents, ("isolation",), "model.smear_gate=v1", *DOCUMENTS, *PLAIN),
    _model(attention_leaks.smear_gate_of_the_target, ("target",), "model.smear_gate=v2", *PLAIN),
    _model(
        attention_leaks.value_embeddings_of_the_target,
        ("target",),
        *("model.attention.value_embed_dim=8", "model.attention.value_embed_layers=1", *PLAIN),
    ),
    _model(attention_leaks.documents_of_the_target, ("target", "isolation"), *DOCUMENTS, *PLAIN),
    _model(ngrams.ngrams_of_the_target, ("target",), *NGRAMS, *PLAIN),
    _model(ngrams.decoder_ngrams_of_the_target, ("target",), *NGRAMS, "model.ngram.reader=decoder"),
    _model(ngrams.ngrams_across_documents, ("isolation",), *NGRAMS, *DOCUMENTS, *PLAIN),
    _dead(ngrams.dead_factors, ngrams.dead_factors, forward, *NGRAMS),
    _dead(adapters.gated_adapters, initial_weights, adapters.gated_adapters, "model.lora.rank=3"),
    _dead(adapters.zero_factors, adapters.zero_factors, forward, "model.lora.rank=3"),
    Exhibit(dead_switch.Switch, ("qat",), _folded_switch),
    Exhibit(other_grid.FlooredScales, ("qat_codes",), _other_grid),
    _scorer(accounting.CacheBonus, "normalisation"),
    _scorer(accounting.RoundedDown, "target", "normalisation"),
    _scorer(accounting.TargetGate, "target"),
    _scorer(accounting.WholeWindowBias, "future", "target"),
    _scorer(accounting.OtherRowsBias, "future", "target", "order"),
    _scorer(accounting.EarlierRows, "future", "target", "order"),
    _scorer(accounting.ScoredBefore, "future", "target", "normalisation", "order"),
    Exhibit(
        accounting.plan_with_double_tail,
        ("coverage", "denominator"),
        lambda: score_failures(plan=accounting.plan_with_double_tail),
    ),
    Exhibit(accounting.plan_without_tail, ("coverage",), lambda: score_failures(plan=accounting.plan_without_tail)),
    Exhibit(accounting.SpacesTwice, ("denominator",), lambda: score_failures(accounting.SpacesTwice)),
    Exhibit(
        accounting.WithoutDocumentStarts,
        ("document_starts",),
        lambda: score_failures(accounting.WithoutDocumentStarts, plan_windows, 8, "vocabulary.kind=byte260"),
    ),
    table_of_bytes(token_tables.SpaceInPieceAndBefore),
    table_of_bytes(token_tables.FallbackBytesAsThree),
    table_of_bytes(token_tables.SpecialsAsText),
    table_of_bytes(token_tables.SentinelsAsText, caseops_tokenizer),
    Exhibit(token_tables.folded_case, ("case",), _folded_case),
    _average(averaging.forget_snapshots, "training.swa_every_steps=2", "training.swa_start_frac=0.0"),
    _average(averaging.start_at_the_initial_weights, "training.ema_decay=0.9"),
    Exhibit(averaging.choose_by_validation, ("selection",), _chosen_by_validation),
    _contaminated(contamination.heldout_in_training),
    _contaminated(contamination.heldout_with_other_white_space),
    _contaminated(contamination.a_twentieth_of_heldout),
    _contaminated(contamination.default_number_of_validation_documents),
    _late(late_text.learn_then_score),
    _late(late_text.last_epoch_of_several),
    _late(late_text.best_of_two_passes),
    _late(late_text.other_rows_of_the_batch),
    _late(late_text.state_of_a_later_document),
    _late(late_text.warm_up_on_heldout),
    Exhibit(packing.calibrate_on_heldout, ("calibration",), _calibrated_on_heldout),
    Exhibit(packing.fit_logits_on_heldout, ("logits",), _logits_fitted_on_heldout),
    Exhibit(packing.artifact_alone, ("size",), _size_without_code),
)
"""In the order of README.md."""

"""Scores with adaptation: the order of passes, what is learnt of them, and that it was scored before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.oracle import Oracle
from shared.engine.registry import ENGINES
from shared.errors import DataError, RunError, UserError
from shared.model import initial_weights, random_weights
from shared.model.counted import uncounted
from shared.model.logits import BIAS, TEMPERATURE
from shared.model.stages import COUNTED
from shared.optim import step_hyperparameters
from shared.scoring.adaptation import adapter_of, document_starts, make_plan, score_adapted, score_text
from shared.scoring.audit import audit_scorer
from shared.scoring.bits_per_byte import Score, score_by_spec
from shared.scoring.document import AdaptationPart
from shared.scoring.journal import Journal, Line, check_journal
from shared.scoring.later_text import check_later_text
from shared.scoring.learner import adaptation_spec, lesson_rows, lessons
from shared.scoring.passes import Pass, Span, Tallied
from shared.scoring.windows import Window
from shared.spec import Spec, load_spec, with_overrides
from shared.spec.adaptation import SETTINGS, AdaptationSpec
from shared.tolerances import ADAPTED_BPB_ABS, LOSS_CURVE_ABS
from tests.command_line import CommandLine, set_words
from tests.implementations import examples
from tests.museum.fake_stream import FakeStream
from tests.techniques import assert_same_gradients, every_engine, started, symbols, tiny

SHORT = ["model.num_layers=2", "model.seq_len=16", "training.batch_symbols=64", "evaluation.batch_symbols=64"]
ONLINE = ["evaluation.adaptation.kind=score_first", "evaluation.adaptation.chunk_symbols=32"]
TEXT = [bytes(np.random.default_rng(seed).integers(97, 105, 90 + 40 * seed).astype(np.uint8)) for seed in range(4)]


def adapted(name: str, spec: Spec, text: list[bytes]) -> Score:
    """The score of weights that already learnt something of such text."""
    return score_adapted(started(name, spec, random_weights(spec, 1)), FakeStream(text))


@examples
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(1, 12).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
    st.integers(1, 50),
    st.integers(1, 5),
    st.sampled_from(["never", "document"]),
    st.integers(1, 4),
)
def test_every_symbol_is_scored_once_and_learnt_after_that(
    documents: list[int], window: tuple[int, int], chunk: int, batch_rows: int, reset: str, ranks: int
) -> None:
    seq_len, stride = window
    settings = [f"evaluation.adaptation.chunk_symbols={chunk}", f'evaluation.adaptation.reset="{reset}"']
    sizes = [f"model.seq_len={seq_len}", f"training.batch_symbols={seq_len}", f"evaluation.stride_symbols={stride}"]
    batch = f"evaluation.batch_symbols={batch_rows * seq_len}"
    spec = tiny("model.patch_size=1", *sizes, batch, "evaluation.adaptation.kind=score_first", *settings)
    starts, total = np.cumsum([0, *documents])[:-1], sum(documents)
    plan = make_plan(spec, total, starts, stride)
    symbols_of = np.arange(total, dtype=np.int32)
    text, journal = Tallied(lambda start, count: symbols_of[start : start + count], total), Journal()
    times, learnt, known = np.zeros(total, int), np.zeros(total, int), np.zeros(total, bool)
    rows = lesson_rows(spec.evaluation.adaptation, seq_len, stride, ranks)
    assert rows % ranks == 0
    for each in plan.passes:
        assert 0 < len(each.windows) <= plan.rows <= batch_rows and 0.0 <= each.progress < 1.0
        if each.resets:
            known[:] = False
        for one in each.windows:
            times[one.count_start : one.count_stop] += 1
            # With a reset at documents nothing of an earlier one is known but what its last window counted beyond it.
            assert reset == "never" or not known[: starts[starts <= one.count_start].max()].any()
            text.count(one)
        for span in each.learnt:
            for x in lessons(text, span, seq_len, rows):
                assert x.shape == (rows, seq_len)
                counted = x[x >= 0]
                learnt[counted] += 1
                known[counted] = True
                assert np.maximum(x, ~x).max() < span.stop
        journal.add(each, "weights")
    assert np.all(times == 1) and learnt.max() <= 1
    assert check_journal(journal.lines, total).passed
    if reset == "never":
        last = plan.passes[-1].windows[-1].count_start // chunk
        assert np.array_equal(np.flatnonzero(learnt == 0) // chunk >= last, np.ones(np.sum(learnt == 0), bool))


def test_only_what_was_counted_can_be_read() -> None:
    text = Tallied(lambda start, count: np.arange(start, start + count), 20)
    text.count(Window(0, 4, 8))
    assert text.read(4, 4).tolist() == [4, 5, 6, 7] and text.read(5, 0).size == 0
    for start, count in ((3, 2), (7, 2), (19, 1), (18, 4), (-1, 1)):
        with pytest.raises(AssertionError, match=r"not all scored yet|outside"):
            text.read(start, count)


def test_the_journal_joins_equal_steps_and_shows_early_learning() -> None:
    journal, steps = Journal(), [(0, 6), (6, 10), (10, 14), (14, 18), (18, 20)]
    for start, stop in steps:
        learnt = (Span(start, stop),) if stop < 20 else ()
        journal.add(Pass((Window(0, start, stop),), learnt), "weights")
    assert journal.lines == [
        Line(Span(0, 6), Span(0, 6), "weights"),
        Line(Span(6, 10), Span(6, 10), "weights", 3, 4),
    ]
    assert check_journal(journal.lines, 20).detail.startswith("18 symbols learnt, 0 of them before")
    early = replace(journal.lines[1], learnt=Span(7, 11))
    check = check_journal([journal.lines[0], early], 20)
    assert not check.passed and check.measured == 3


@pytest.mark.slow
@every_engine
def test_later_text_changes_no_earlier_score_and_earlier_text_does(name: str) -> None:
    spec = tiny(*SHORT, *ONLINE, "evaluation.adaptation.rate=0.01")
    whole, stream = adapted(name, spec, TEXT), FakeStream(TEXT)
    changed = [*TEXT[:2], b"z" * len(TEXT[2]), TEXT[3]]
    other, plain = adapted(name, spec, changed), score_by_spec(started(name, spec, random_weights(spec, 1)), stream)
    before = whole.by_document.nats, other.by_document.nats, plain.by_document.nats
    assert np.array_equal(before[0][:2], before[1][:2]) and before[0][3] != before[1][3]
    # The first chunk is scored before anything is learnt; then it learns that the text has eight letters.
    assert whole.bpb < plain.bpb - 0.1
    assert [(line.scored, line.times) for line in whole.journal] == [((0, 32), stream.num_symbols // 32)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=sgd", "rate=0.1", "epochs=2", "rate_shape=cosine", "clip_norm=1.0", 'parameters=["layers.*"]'],
        ["optimizer=muon", "rate=0.01"],
        ["lora.rank=2", "rate=0.01", 'lora.targets=["q", "mlp"]', "reset=document"],
        ["chunk_symbols=8", "batch_symbols=16"],
    ],
    ids=["sgd of blocks", "muon", "factors, forgotten", "small chunks"],
)
def test_engines_agree_after_learning(words: list[str]) -> None:
    """The weights are those that a text was scored with last, on top of which they learnt ten chunks and more."""
    lora = ["model.lora.rank=2"] if words[0].startswith("lora") else []
    spec = tiny(*SHORT, *ONLINE, *lora, *(f"evaluation.adaptation.{word}" for word in words))
    text = TEXT[: 2 if "chunk_symbols=8" in words else 4]
    scores = [adapted(name, spec, text) for name in ENGINES]
    assert abs(scores[0].bpb - scores[1].bpb) <= ADAPTED_BPB_ABS
    plain = score_by_spec(Oracle(spec, random_weights(spec, 1)), FakeStream(text))
    assert scores[0].bpb < plain.bpb - 20 * ADAPTED_BPB_ABS


@every_engine
def test_only_what_a_pattern_names_is_learnt(name: str) -> None:
    spec = tiny(*SHORT, *ONLINE, 'evaluation.adaptation.parameters=["layers.*.mlp.*", "embed.start"]')
    weights, text = random_weights(spec, 1), Tallied(FakeStream(TEXT).read, 400)
    text.count(Window(0, 0, 32))
    with adapter_of(started(name, spec, weights), 16) as learner:
        learner.learn(Pass((), (Span(0, 32),)), text)
        moved = {
            key for key, value in learner.engine.export_weights("trained").items() if np.any(value != weights[key])
        }
    assert moved == {key for key in weights if ".mlp." in key and key.startswith("layers.")} | {"embed.start"}


@pytest.mark.parametrize(
    ("setting", "section"), [("online", "evaluation.adaptation"), ("pr1855", "evaluation.adaptation.phases")]
)
def test_a_pattern_that_names_nothing_is_told_before_anything_is_trained(
    setting: str, section: str, tmp_path: Path, cli: CommandLine
) -> None:
    words = set_words(f"evaluation.adaptation={setting}", f'{section}.parameters=["lay"]', "training.compile=false")
    words += set_words("evaluation.adaptation.lora.rank=2") if setting == "pr1855" else []
    refusal = cli.refusal("train", "tiny", *words, "--engine", "mlx", "--runs-dir", tmp_path)
    assert f"{section}.parameters = ['lay']: matches no parameter that is trained" in refusal
    assert list(tmp_path.iterdir()) == []


@every_engine
def test_what_is_learnt_is_what_is_scored(name: str) -> None:
    """Through the temperature and bias that an artifact was fitted."""
    spec = tiny(*SHORT, *ONLINE, "artifact.logits=temperature_bias")
    bias = np.random.default_rng(0).normal(0.0, 0.5, spec.vocabulary.size).astype(np.float32)
    fitted = {TEMPERATURE: np.array([1.5], np.float32), BIAS: bias}
    with adapter_of(started(name, spec, random_weights(spec, 1) | fitted), 16) as learner:
        x = symbols(learner.engine.spec)
        scored, plain = learner.score(x).mean(), Oracle(spec, random_weights(spec, 1)).score(x).mean()
        nats, _ = learner.step(x, 0.0)()
    assert abs(nats - scored) <= LOSS_CURVE_ABS < abs(nats - plain)


@every_engine
def test_the_state_of_a_learner_is_all_that_it_knows(name: str) -> None:
    spec = tiny(*SHORT, *ONLINE, "evaluation.adaptation.rate=0.01")
    stream = FakeStream(TEXT)
    plan = make_plan(spec, stream.num_symbols, document_starts(stream), 16)
    text = Tallied(stream.read, stream.num_symbols)
    x = symbols(spec, 2)
    with adapter_of(started(name, spec), 16) as one, adapter_of(started(name, spec), 16) as two:
        for index, each in enumerate(plan.passes[:4]):
            for window in each.windows:
                text.count(window)
            if index == 2:
                two.load_state(one.save_state())
            for learner in (one, two)[: 2 if index >= 2 else 1]:
                learner.learn(each, text)
        assert np.array_equal(one.score(x), two.score(x))


@every_engine
def test_marked_symbols_alone_count(name: str) -> None:
    spec = tiny(*SHORT, "training.loss.counts=marked")
    engine, x = started(name, spec), symbols(spec)
    numbers = step_hyperparameters(spec, 0, 0.0)
    assert numbers.run == {COUNTED: 1.0}
    all_of_it = engine.gradients(x, numbers)[1]
    assert_same_gradients(spec, all_of_it, started(name, tiny(*SHORT)).gradients(x)[1])
    counts = np.random.default_rng(0).random(x.shape) < 0.3
    nats, some = engine.gradients(uncounted(x, counts), numbers.with_run({COUNTED: float(counts.mean())}))
    expected = float(Oracle(spec, random_weights(spec, 3)).score(x)[counts].mean())
    assert abs(nats - expected) <= LOSS_CURVE_ABS
    # The gradient of a mean is the mean of gradients: of those that count and of those that do not.
    share = float(counts.mean())
    _, others = engine.gradients(uncounted(x, ~counts), numbers.with_run({COUNTED: 1.0 - share}))
    joined = {key: share * some[key] + (1.0 - share) * others[key] for key in some}
    assert_same_gradients(spec, joined, all_of_it)


def test_a_learner_that_diverges_says_so() -> None:
    spec = tiny(*SHORT, *ONLINE, "evaluation.adaptation.rate=1e30", "evaluation.adaptation.optimizer=sgd")
    with pytest.raises(RunError, match=r"not a number; evaluation.adaptation.rate 1e\+30 is too high"):
        adapted("torch", spec, TEXT)


def test_the_oracle_cannot_learn() -> None:
    spec = tiny(*SHORT, *ONLINE)
    with pytest.raises(UserError, match="needs gradients, which the engine numpy has not"):
        score_adapted(Oracle(spec, initial_weights(spec)), FakeStream(TEXT))
    with pytest.raises(DataError, match="no text to score"):
        score_adapted(Oracle(spec, initial_weights(spec)), FakeStream([]))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_by_name_is_a_start_for_further_changes(name: str) -> None:
    # The rank of pr1855 is below all widths.
    wide = ["model.model_dim=192", "model.decoder.dim=128"]
    spec = load_spec("smoke", [*wide, f"evaluation.adaptation={name}", "evaluation.adaptation.epochs=7"])
    assert spec.evaluation.adaptation == AdaptationSpec.model_validate({**SETTINGS[name], "epochs": 7})
    plain, online = with_overrides(spec, ["evaluation.adaptation=online"]), SETTINGS["online"]
    assert plain.evaluation.adaptation == AdaptationSpec.model_validate(online)
    derived = adaptation_spec(spec, 4)
    assert derived.model.seq_len == spec.model.seq_len and not derived.evaluation.adaptation.is_on


# The passes of pr1431 are those of pr549.
HONEST = [*(name for name in SETTINGS if name != "pr1431"), "lora.rank=2", "reset=document"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [(list(ENGINES)[index % 2], words) for index, words in enumerate(HONEST)])
def test_honest_adaptation_knows_no_later_text(name: str, words: str) -> None:
    settings = [f"evaluation.adaptation={words}"] if words in SETTINGS else [*ONLINE, f"evaluation.adaptation.{words}"]
    small = ["evaluation.adaptation.lora.rank=2"] if "lora" in SETTINGS.get(words, {}) else []
    spec = tiny(*SHORT, *settings, *small, "evaluation.adaptation.rate=0.01")
    check = check_later_text(score_adapted, started(name, spec, random_weights(spec, 1)), FakeStream(TEXT), seconds=0.0)
    assert check.passed and check.measured == 0.0 and "3 cuts" in check.detail


@pytest.mark.parametrize(("chunk", "text"), [(32, TEXT), (1 << 20, TEXT), (32, TEXT[:1]), (32, [b"a"])])
def test_the_audit_of_an_adapted_score_runs_the_protocol_again(chunk: int, text: list[bytes]) -> None:
    """Also where all of the text is one chunk, so that nothing of it is learnt, or one document, or one symbol."""
    spec = tiny(*SHORT, *ONLINE, f"evaluation.adaptation.chunk_symbols={chunk}")
    scorer, stream = started("torch", spec, random_weights(spec, 1)), FakeStream(text)
    score = score_text(scorer, stream)
    assert {line.what for line in score.journal} <= {"weights"}
    report = audit_scorer(scorer, stream, score, seconds=0.0)
    assert report.passed and {"adaptation", "later_text", "coverage"} <= {check.name for check in report.checks}


@pytest.mark.parametrize("learnt", [[40, 60], [0, 33], [33, 32]])
def test_a_journal_that_learns_too_early_is_refused(learnt: list[int]) -> None:
    line = {"scored": [0, 32], "learnt": [0, 32], "what": "weights", "times": 3, "advance": 32}
    settings = tiny(*ONLINE).evaluation.adaptation
    # A line that stands for one step may learn again what lines before it scored: here up to 32 + 2 * 32.
    after = {**line, "scored": [40, 50], "learnt": [0, 96], "times": 1, "advance": 0}
    assert AdaptationPart.model_validate({"settings": settings, "journal": [line, after]})
    with pytest.raises(ValueError, match="line 1 of the journal"):
        AdaptationPart.model_validate({"settings": settings, "journal": [line, {**after, "learnt": [0, 97]}]})
    with pytest.raises(ValueError, match="line 0 of the journal"):
        AdaptationPart.model_validate({"settings": settings, "journal": [{**line, "learnt": learnt}]})

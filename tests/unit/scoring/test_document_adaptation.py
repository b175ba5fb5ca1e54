"""Documents that are learnt side by side: nothing reaches a document but what came before it and was scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import SpecError
from shared.model import random_weights
from shared.preflight.function_rows import shrunken_spec
from shared.scoring.adaptation import score_adapted
from shared.scoring.bits_per_byte import Score, score_by_spec
from shared.scoring.journal import Journal, Line, check_journal
from shared.scoring.passes import Span
from shared.scoring.plans import BLOCK_BATCHES, make_plan
from shared.spec import Spec, load_spec, preset_names, spec_to_dict, stored_spec, with_overrides
from shared.tolerances import ADAPTED_BPB_ABS
from tests.implementations import ENGINES, examples
from tests.museum.fake_stream import FakeStream
from tests.techniques import every_engine, started, symbols, tiny
from tests.unit.spec.test_presets import MINIS

SHORT = ["model.num_layers=1", "model.seq_len=16", "training.batch_symbols=64", "evaluation.batch_symbols=64"]
SIZES = (70, 10, 33, 52, 8, 41)
TEXT = [bytes(np.random.default_rng(size).integers(97, 101, size).astype(np.uint8)) for size in SIZES]


def settings(**values: Any) -> list[str]:
    """Overrides of the adaptation section, one field each."""
    all_of_it = {"kind": '"document"', "chunk_symbols": 8, "rate": 0.03, "lora.rank": 2, "documents": 4, **values}
    return [f"evaluation.adaptation.{key.replace('__', '.')}={value}" for key, value in all_of_it.items()]


def adapted(name: str, spec: Spec, text: list[bytes] = TEXT) -> Score:
    return score_adapted(started(name, spec, random_weights(spec, 1)), FakeStream(text))


@examples
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.integers(1, 3).flatmap(lambda patch: st.tuples(st.just(patch), st.integers(2, 5).map(lambda n: n * patch))),
    st.integers(1, 30),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
    st.integers(1, 50),
)
def test_what_reaches_a_document_is_earlier_and_was_scored(
    sizes: list[int], window: tuple[int, int], chunk: int, rows: int, warm: bool, phases: int, prefix: int
) -> None:
    patch, seq_len = window
    words = settings(
        chunk_symbols=chunk,
        documents=rows,
        warm_start=str(warm).lower(),
        phases__count=phases,
        phases__documents=prefix,
    )
    lengths = [f"model.seq_len={seq_len}", f"training.batch_symbols={seq_len}", f"model.patch_size={patch}"]
    spec = tiny(*lengths, f"evaluation.batch_symbols={3 * seq_len}", *words)
    starts, total = np.cumsum([0, *sizes])[:-1], sum(sizes)
    ends = [*starts[1:].tolist(), total]
    plan = make_plan(spec, total, starts, seq_len)
    journal, times, scored = Journal(), np.zeros(total, int), np.zeros(total, bool)
    shared_span, done, learnt_last = 0, set[int](), dict[int, int]()
    reach = {"base": 0, "first": 0}
    for each in plan.passes:
        if each.resets:
            learnt_last = {}
        if each.inherits:
            # All documents that were done since: none behind this block.
            reach["first"] = max((ends[document] for document in done), default=reach["first"])
        assert 0 < len(each.windows) <= plan.rows <= rows and each.width <= seq_len and each.width % patch == 0
        for row, one in enumerate(each.windows):
            document = int(np.searchsorted(starts, one.count_start, side="right")) - 1
            assert starts[document] <= one.start <= one.count_start < one.count_stop <= ends[document]
            assert one.count_stop - one.start <= each.width
            assert learnt_last.setdefault(row, one.count_start) == one.count_start
            # From neighbours only, which lie before it in the text.
            assert max(reach["base"], reach["first"]) <= starts[document] and scored[: max(reach.values())].all()
            times[one.count_start : one.count_stop] += 1
            scored[one.count_start : one.count_stop] = True
            learnt_last[row] = one.count_stop
            if one.count_stop == ends[document]:
                done.add(document)
        for span, one in zip(each.learnt, each.windows, strict=False):
            assert span == (one.count_start, one.count_stop) and span.stop - span.start == min(chunk, seq_len)
        if each.base is not None:
            assert scored[each.base.start : each.base.stop].all() and each.base.start == 0
            reach["base"] = each.base.stop
            shared_span += 1
        journal.add(each, "factors of each document")
    assert np.all(times == 1) and check_journal(journal.lines, total).passed
    assert shared_span <= phases and (warm or reach["first"] == 0)


@every_engine
def test_a_document_in_a_batch_is_scored_as_one_alone(name: str) -> None:
    """Whatever is beside it, in whichever row; and factors learn, and are forgotten."""
    spec = tiny(*SHORT, *settings())
    together = adapted(name, spec)
    for index in (0, 2, 4):
        alone = adapted(name, spec, [TEXT[index]])
        assert alone.nats == pytest.approx(together.by_document.nats[index], rel=1e-5)
    plain = score_by_spec(
        started(name, with_overrides(spec, ["evaluation.stride_symbols=8"]), random_weights(spec, 1)),
        FakeStream(TEXT[:1]),
    )
    assert together.by_document.nats[0] < plain.nats - 5.0
    lines = [Line(Span(0, sum(SIZES)), Span(0, together.journal[0].learnt.stop), "factors of each document")]
    assert list(together.journal) == lines and together.stride == 8


FLOWS = {
    "none": settings(),
    "warm start": settings(warm_start="true", documents=1),
    "phases": settings(phases__count=2, phases__documents=4, phases__rate=0.05, phases__batch_symbols=32),
}


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS)
def test_later_documents_change_no_earlier_score(flow: str) -> None:
    """Nine documents more than a block has, so that a warm start has something to start from."""
    text = [*(bytes([97 + index % 4]) * 20 for index in range(BLOCK_BATCHES)), *TEXT]
    spec = tiny(*SHORT, *FLOWS[flow])
    results = {name: adapted(name, spec, text) for name in ENGINES}
    assert abs(results["mlx"].bpb - results["torch"].bpb) <= ADAPTED_BPB_ABS
    before = results["torch"].by_document.nats
    after = adapted("torch", spec, [*text[:-1], b"z" * len(text[-1])]).by_document.nats
    assert after[:-1] == pytest.approx(before[:-1], rel=1e-6) and after[-1] != pytest.approx(before[-1], rel=1e-2)
    first = adapted("torch", spec, [b"z" * len(text[0]), *text[1:]]).by_document.nats
    assert (abs(first[-1] - before[-1]) > 1e-3) == (flow != "none")


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted({*preset_names()} - {*MINIS, "laptop"}))
def test_every_preset_has_every_adaptation(preset: str) -> None:
    """At reduced size, on engines by turns: weights, then factors for documents with a phase. Presets that are missing
    here are larger ones of the same techniques, which tests of presets compare."""
    spec = load_spec(preset)
    spec = with_overrides(spec, ["vocabulary.vocab_size=300"] if spec.vocabulary.reads_tokens else [])
    spec, _ = shrunken_spec(spec, 60_000, 24)
    size = spec.model.seq_len
    text = [b"ab" * size, b"ba" * (size // 2), b"aab" * 5]
    stream = TokenText(symbols(spec, 3)) if spec.vocabulary.reads_tokens else FakeStream(text, spec.vocabulary)
    phases = {"phases__count": 1, "phases__documents": 1, "phases__rate": 0.05}
    for index, words in enumerate((settings(kind="score_first"), settings(warm_start="true", **phases))):
        half = f"evaluation.adaptation.chunk_symbols={size // 2}"
        changed = with_overrides(spec, [*words, half, "training.compile=false"])
        name = ENGINES[(index + len(preset)) % 2]
        scorer = started(name, changed, random_weights(changed, 1))
        score = score_adapted(scorer, stream)  # type: ignore[arg-type]
        assert np.isfinite(score.bpb) and check_journal(score.journal, stream.num_symbols).passed
        assert "weights" in {line.what for line in score.journal} or index == 0
        assert abs(score.bpb - score_by_spec(scorer, stream).bpb) > 1e-4, name  # type: ignore[arg-type]


class TokenText(FakeStream):
    """Random tokens in documents of one window, each of two bytes."""

    def __init__(self, x: np.ndarray) -> None:
        super().__init__([bytes(2 * x.shape[1])] * len(x))
        self.symbols, self.ids = x.reshape(-1), np.repeat(np.arange(len(x)), x.shape[1])
        self.sizes, self.num_symbols = np.full(x.size, 2), x.size


def test_factors_for_each_row_are_no_part_of_a_spec() -> None:
    with pytest.raises(SpecError, match=r"tiny: model.lora.rows = 2: must be 0, only adaptation sets it"):
        load_spec("tiny", ["model.lora.rows=2"])
    values = spec_to_dict(load_spec("tiny"))
    values["model"]["lora"]["rows"] = 3
    with pytest.raises(SpecError, match=r"a file: model.lora.rows = 3"):
        stored_spec(values, "a file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kind=document"], "lora.rank = 0: must be above 0 with 'document'"),
        (["kind=document", "lora.rank=2", "clip_norm=1.0"], "clip_norm = 1.0: must be 0 with 'document'"),
        (["kind=document", "lora.rank=2", "rate_shape=cosine"], "rate_shape = 'cosine': must be constant"),
        (["kind=document", "lora.rank=2", "optimizer=muon"], "optimizer = 'muon': must be adam or sgd with factors"),
        (["kind=document", "lora.rank=2", "reset=document"], "reset = 'document': must be never with 'document'"),
        (["kind=score_first", "warm_start=true"], "warm_start = True: must be False with 'score_first'"),
        (["kind=score_first", "phases.count=2"], "phases.count = 2: must be 0 with 'score_first'"),
        (["optimizer=sgd", "weight_decay=0.1"], "weight_decay = 0.1: must be 0 with sgd, which has none"),
        (["documents=0"], "documents = 0: must be greater than 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("tiny", [f"evaluation.adaptation.{word}" for word in words])
    assert message in str(caught.value) and "\n" not in str(caught.value)

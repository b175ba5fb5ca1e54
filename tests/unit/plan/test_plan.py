"""`bytetwin plan`: what it writes loads and fits, its scores go through what was measured, and it says how far not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.artifact.predict import predict_artifact_bytes
from shared.cli.main import main
from shared.engine.hardware import find_peak
from shared.errors import UserError
from shared.plan import Wish, choose, make_plan, speed
from shared.plan.choose import NOTHING_BPB, STEP_COST
from shared.plan.loss import SEED_BPB, expected_score
from shared.plan.speed import Speed
from shared.preflight.speed_rows import average_row, step_time_row
from shared.runs.measured import MeasuredRow, measured_rows
from shared.spec import load_spec
from tests import ROOT
from tests.command_line import CommandLine
from tests.unit.preflight.test_figures import CPU, STEP, make_context

ROWS = measured_rows()
# One shape of bytes measured for several lengths, another, and one of tokens: a plan of few shapes is soon made.
FEW = [
    row for row in ROWS if row.label in ("smoke", "decoder of 64", "1,024 tokens, trunk of smoke") or "H" in row.device
]


def test_narrower_shapes_are_as_fast_as_they_were_measured() -> None:
    """By operations alone the narrow ones are a quarter to a third too fast."""
    rows = [row for row in ROWS if row.device == "2 x86-64 cores"]
    smoke = next(row for row in rows if row.label == "smoke")
    found = Speed(False, "mlx", 1.0, tuple(rows), "")
    assert found.per_s(smoke.spec, smoke) == pytest.approx(smoke.per_s)
    narrow = [row for row in rows if row.label.endswith(("128 wide", "96 wide"))]
    assert narrow
    for row in narrow:
        assert 0.78 < found.per_s(row.spec, smoke) / row.per_s < 1.0, row.label


def use(monkeypatch: pytest.MonkeyPatch, rows: Sequence[MeasuredRow]) -> None:
    """Let plans know these rows alone, and on GPUs one number of layers and one step."""
    for module in (choose, speed):
        monkeypatch.setattr(module, "measured_rows", lambda: tuple(rows))
    monkeypatch.setattr(choose, "MORE_LAYERS", (0,))
    monkeypatch.setattr(choose, "STEPS", (0.085,))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FEW)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.label}, {row.device}, {row.seconds:g} s")
def test_every_row_is_of_a_page_that_exists_and_of_a_spec_that_loads(row: MeasuredRow) -> None:
    assert (ROOT / row.record).is_file() and row.per_s > 0 and row.parameters > 0
    assert (row.bpb is None) == (row.seconds == 0.0) == (row.text == "")
    if row.mfu is not None:
        peak = find_peak(row.device)
        assert peak is not None
        assert row.mfu == pytest.approx(row.per_s * row.flops_per_symbol / peak[1].flops_per_s("bfloat16"), rel=0.08)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@settings(max_examples=5, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(5.3, 7.8).map(lambda exponent: int(10**exponent)),
    st.floats(0.5, 60.0),
    st.sampled_from([("laptop", 1), ("H100", 8), ("H200", 3)]),
    st.booleans(),
)
def test_a_plan_loads_and_fits_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, limit: int, minutes: float, where: tuple[str, int], tokens: bool
) -> None:
    """By the high estimate too, for the steps that are expected and for all that the spec allows."""
    device, gpus = where
    words = ["--bytes", str(limit), "--minutes", str(minutes), "--device", device, "--gpus", str(gpus)]
    path = tmp_path_factory.mktemp("plan") / "mine.toml"
    status = main(["plan", *words, "--output", str(path), *(["--vocabulary", "tokens"] if tokens else [])])
    if status == 2:
        assert limit < (400_000 if device == "laptop" else 2_000_000) and not path.exists()
        return
    plan = make_plan(Wish(limit, minutes, gpus, device, tokens))
    spec, chosen = load_spec(path), plan.chosen
    assert spec == chosen.spec.model_copy(update={"name": "mine"})
    assert spec.budget.total_bytes == limit and spec.training.time_limit_s == pytest.approx(60 * minutes)
    for steps in (chosen.steps, spec.training.steps):
        assert predict_artifact_bytes(spec, steps).high_bytes + chosen.code_bytes <= limit
    assert spec.training.batch_symbols % (spec.model.seq_len * gpus) == 0
    assert chosen.expected.low_bpb <= chosen.expected.bpb <= chosen.expected.high_bpb
    best = min(each.expected.bpb for each in plan.candidates)
    alike = [each.expected for each in plan.candidates if each.expected.bpb < best + NOTHING_BPB]
    assert chosen.expected.bpb < best + NOTHING_BPB and len(alike) == plan.num_alike + 1
    assert chosen.expected.high_bpb == min(each.high_bpb for each in alike)
    at_this_speed = STEP.__class__(**{**vars(STEP), "step_s": spec.training.batch_symbols / chosen.per_s})
    context = make_context(
        spec.model_copy(update={"training": spec.training.model_copy(update={"dtype": "float32"})}), CPU, at_this_speed
    )
    for ask in (average_row, step_time_row):
        assert ask(context).verdict == "go", ask(context)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "seconds"), [("laptop", 105), ("laptop", 300), ("laptop", 600), ("core", 90)])
def test_the_choice_is_as_good_as_the_best_that_was_measured(device: str, seconds: float) -> None:
    """Within 3 %, by the scores of the rows of about that length."""
    near = [row for row in ROWS if row.device == speed.LAPTOPS[device] and 0.9 < row.seconds / seconds < 1.15]
    scores = {row.label: row.bpb for row in near if not row.spec.vocabulary.reads_tokens and row.bpb is not None}
    chosen = make_plan(Wish(16_000_000, seconds / 60, 1, device)).chosen
    assert scores[chosen.label] <= 1.03 * min(scores.values())


def on_laptop(label: str) -> tuple[MeasuredRow, list[MeasuredRow]]:
    """The first row of a shape, and all of laptops."""
    rows = [row for row in ROWS if find_peak(row.device) is None]
    return next(row for row in rows if row.label == label), rows


def test_a_shape_scores_what_was_measured_and_less_with_more_text() -> None:
    row, rows = on_laptop("smoke")
    for each in (each for each in rows if each.label == "smoke" and each.text == row.text):
        found = expected_score(row, row.parameters, each.text_bytes, rows)
        assert found.bpb == pytest.approx(each.bpb, abs=0.02) and found.beyond == pytest.approx(1.0)
    scores = [expected_score(row, row.parameters, factor * row.text_bytes, rows) for factor in (1, 3, 10, 30, 100)]
    assert all(one.bpb > other.bpb for one, other in pairwise(scores))
    widths = [each.high_bpb - each.low_bpb for each in scores]
    assert widths[0] < widths[-1] and min(widths) >= 2 * SEED_BPB - 1e-9
    assert scores[-1].beyond == pytest.approx(
        100 * row.text_bytes / max(e.text_bytes for e in rows if e.shape == row.shape and e.text == row.text)
    )


def test_a_row_left_out_is_where_the_others_put_it() -> None:
    """Each row of a shape that was measured for several lengths, from the rest: the error that the page states."""
    _, rows = on_laptop("smoke")
    errors = []
    for row in rows:
        rest = [each for each in rows if each is not row]
        if row.bpb is not None and any((each.shape, each.text) == (row.shape, row.text) for each in rest):
            found = expected_score(row, row.parameters, row.text_bytes, rest)
            errors.append(found.bpb - row.bpb)
            assert found.low_bpb <= row.bpb <= found.high_bpb
    assert len(errors) >= 5 and math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.06


def test_the_two_runs_on_a_gpu_predict_each_other_and_far_ahead_little_is_known() -> None:
    rows = [row for row in ROWS if row.device == "H200" and row.bpb is not None]
    for one, other in (rows, rows[::-1]):
        found = expected_score(one, one.parameters, other.text_bytes, [one])
        assert found.bpb == pytest.approx(other.bpb, abs=0.01) and "published law" in found.basis
    far = expected_score(rows[0], 23_000_000, 3.4e10, rows)
    assert far.high_bpb - far.low_bpb > 0.5 and far.beyond > 50 and "2.20 times the weights" in far.basis


def test_speeds_of_gpus_follow_their_peak_and_number() -> None:
    one, eight = (speed.find_speed(Wish(1, 1.0, gpus, "H200")) for gpus in (1, 8))
    h100 = next(row for row in ROWS if row.label == "h100")
    assert one.per_s(h100.spec, h100) == pytest.approx(7.90e6)
    assert eight.per_s(h100.spec, h100) == pytest.approx(8 * 7.90e6) and "8 times one, not measured" in eight.text
    a100 = speed.find_speed(Wish(1, 1.0, 1, "A100"))
    assert a100.factor == pytest.approx(312.0 / 989.4) and "not measured" in a100.text


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step of the preset takes a quarter of the time of the row."""
    smoke = max((row for row in ROWS if row.label == "smoke"), key=lambda row: row.per_s)
    fast = STEP.__class__(**{**vars(STEP), "step_s": 4096 / (4 * smoke.per_s)})
    asked = []

    def prepare(question: Any) -> Any:
        asked.append(question.spec.name)
        return SimpleNamespace(step=fast, workload=SimpleNamespace(rank_symbols=4096))

    monkeypatch.setattr(speed, "prepare", prepare)
    found = speed.find_speed(Wish(1, 1.0))
    assert found.factor == pytest.approx(4.0) and asked == ["smoke"] and "4.00 times" in found.text
    monkeypatch.setattr(speed, "prepare", lambda question: SimpleNamespace(step=None))
    with pytest.raises(UserError, match="no step of smoke could be measured: it does not fit in memory"):
        speed.find_speed(Wish(1, 1.0))


@pytest.mark.usefixtures("few")
def test_a_plan_is_printed_as_a_spec_or_as_json(cli: CommandLine, tmp_path: Path) -> None:
    words = ("plan", "--bytes", "16e6", "--minutes", "3", "--device", "laptop", "--set", "data.train=mytext")
    done = cli(*words)
    assert done.status == 0 and done.out.startswith(
        "# bytetwin plan --bytes 16000000 --minutes 3 --gpus 1 --device laptop"
    )
    assert "shapes for 16,000,000 bytes" in done.err and "records/" in done.out
    path = tmp_path / "printed.toml"
    path.write_text(done.out)
    spec = load_spec(path)
    assert spec.data.train == "mytext" and spec.schedule.driver == "time" and spec.training.time_limit_s == 180.0
    document = cli.document(*words)
    assert document["toml"] == done.out and document["candidates"][0]["expected"]["bpb"] < 2.7
    assert {each["label"] for each in document["candidates"]} == {"smoke", "decoder of 64"}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bytes", "1000"], "--bytes 1000: no shape fits, the smallest may take"),
        (["--bytes", "1.5"], "a whole number of bytes"),
        (["--bytes", "nan"], "a whole number of bytes"),
        (["--minutes", "0"], "minutes above 0"),
        (["--minutes", "0.001"], "--minutes 0.001: time for 0 steps, at least 20 are needed"),
        (["--gpus", "8"], "--gpus 8: laptop counts as 1"),
        (["--gpus", "0"], "--gpus: 0: must be 1 to 64"),
        (["--device", "H10"], "no such choice, did you mean 'H100'?"),
        (["--set", "model.num_layer=3"], "model.num_layer"),
    ],
)
def test_bad_wishes(words: list[str], message: str, cli: CommandLine, tmp_path: Path) -> None:
    given = ["--bytes", "16e6", "--minutes", "3", "--device", "laptop", *words]
    assert message in cli.refusal("plan", *given, "--output", tmp_path / "never.toml")
    assert not list(tmp_path.iterdir())


def test_the_price_of_a_step_is_that_of_the_record() -> None:
    page = (ROOT / "records" / "2026-11-26-quantisation.md").read_text(encoding="utf-8")
    for step in (0.45, 0.6):
        (line,) = [
            line for line in page.splitlines() if line.startswith(f"| uniform {step:g} rms, gptq |") and "±" not in line
        ][-1:]
        assert STEP_COST * step**2 == pytest.approx(float(line.split("|")[3]) / 1000, rel=0.1)

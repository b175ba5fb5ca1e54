"""`bytetwin fit`: finds the curve that made the points, takes only points at the full learning rate, and says how
far it may be off."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.cli.main import main
from shared.errors import UserError
from shared.runs.metrics import Event
from shared.runs.run_directory import RunDirectory
from shared.runs.scaling_curve import ScalingCurve
from shared.spec import spec_to_toml
from shared.study.scaling import Point, check_one_curve, fit_curve, fit_points, run_points
from tests.fake_training import tiny_spec


def points_of(curve: ScalingCurve, symbols: list[int], noise: np.ndarray | None = None) -> list[Point]:
    errors = np.zeros(len(symbols)) if noise is None else noise
    return [Point("run", t, t, curve.bpb(t) + float(e)) for t, e in zip(symbols, errors, strict=True)]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 2.0), st.floats(0.1, 1.0), st.floats(0.1, 0.8), st.integers(5, 12))
def test_exact_points_give_back_their_curve(c: float, share: float, alpha: float, count: int) -> None:
    symbols = [int(1e6 * 1.7**index) for index in range(count)]
    truth = ScalingCurve(c, share * c * symbols[0] ** alpha, alpha)
    found = fit_points(points_of(truth, symbols))
    assert found.curve.c == pytest.approx(c, rel=1e-4)
    assert found.curve.alpha == pytest.approx(alpha, rel=1e-3)
    assert found.curve.a == pytest.approx(truth.a, rel=2e-2)
    assert found.rms_bpb < 1e-6 and found.r_squared > 1 - 1e-9
    assert found.last_out_bpb == pytest.approx(0.0, abs=1e-5)


def test_the_published_curve() -> None:
    """bpb = 1.165 + 1175 T^-.434 over eight points of one run (docs/techniques.md 12.1)."""
    truth = ScalingCurve(1.165, 1175.0, 0.434)
    found = fit_points(points_of(truth, [50_000_000 * k for k in range(1, 9)]))
    assert found.curve.bpb(1e9) == pytest.approx(truth.bpb(1e9), abs=1e-6)


def test_the_fit_minimises_squared_errors_in_bpb() -> None:
    """No neighbour of the fitted curve is closer to noisy points."""
    rng = np.random.default_rng(0)
    symbols = np.array([2.0**k * 1e6 for k in range(9)])
    bpb = 1.2 + 300.0 * symbols**-0.4 + 0.003 * rng.standard_normal(9)
    found = fit_curve(symbols, bpb)
    assert found is not None

    def error(c: float, scale: float, alpha: float) -> float:
        """`scale` is a T^-alpha in the middle of the range, which alpha alone hardly moves."""
        middle = 1.6e7
        return float(np.sum((bpb - c - scale * (symbols / middle) ** -alpha) ** 2))

    best = (found.c, found.a * 1.6e7**-found.alpha, found.alpha)
    for index in range(3):
        for factor in (0.98, 1.02):
            moved = [value * (factor if at == index else 1.0) for at, value in enumerate(best)]
            assert error(*moved) > error(*best)


def test_a_curve_without_a_floor_ends_at_zero() -> None:
    found = fit_points(points_of(ScalingCurve(0.0, 50.0, 0.2), [10**k for k in range(4, 10)]))
    assert 0.0 <= found.curve.c < 1e-6 and found.curve.alpha == pytest.approx(0.2, rel=1e-4)


def test_leaving_out_the_last_point_shows_a_bend() -> None:
    """Points on a curve, but the last is 0.05 lower, as in a warm-down: the rest misses it by just that."""
    symbols = [10**6 * 2**k for k in range(8)]
    truth = ScalingCurve(1.2, 500.0, 0.4)
    noise = np.zeros(8)
    noise[-1] = -0.05
    found = fit_points(points_of(truth, symbols, noise))
    assert found.last_out_bpb == pytest.approx(-0.05, abs=1e-4)


def test_too_few_steps_or_no_fall_are_refused() -> None:
    curve = ScalingCurve(1.0, 10.0, 0.3)
    with pytest.raises(UserError, match="5 or more different steps at constant learning rate, there are 4"):
        fit_points([*points_of(curve, [1000, 2000, 3000, 4000]), *points_of(curve, [1000, 2000, 3000, 4000])])
    with pytest.raises(UserError, match="does not fall"):
        fit_points([Point("r", t, t, 1.0 + t / 1000) for t in range(1, 8)])
    with pytest.raises(UserError, match="does not fall"):
        fit_points([Point("r", t, t, 1.5) for t in range(1, 8)])


def make_run(
    folder: Path, *overrides: str, scores: dict[int, float], rates: dict[int, float], text: str = "ab"
) -> Path:
    """A run with validations `scores` by step and logged learning-rate factors `rates` by step.

    `text` are two digits of the hash of its training text."""
    folder.mkdir()
    (folder / "environment.json").write_text(json.dumps({"data": {"train": {"sha256": text * 32}}}))
    (folder / "spec.toml").write_text(spec_to_toml(tiny_spec(*overrides)))
    events: list[Event] = [{"event": "step", "step": step, "lr_factor": rate} for step, rate in rates.items()]
    events += [{"event": "validation", "step": step, "bpb": bpb} for step, bpb in scores.items()]
    lines = [json.dumps(event) for event in sorted(events, key=lambda event: int(event["step"]))]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def falling(*steps: int) -> dict[int, float]:
    return {step: 2.0 + 3.0 * step**-0.5 for step in steps}


def test_only_points_at_the_full_rate_count(tmp_path: Path) -> None:
    """Warm-up until step 10, warm-down from step 40 on; step 25 lies between logged steps of the full rate, steps
    5 and 45 do not. A validation after the last logged step is not known to be at the full rate."""
    rates = {1: 0.1, 10: 0.9, 20: 1.0, 30: 1.0, 40: 1.0, 50: 0.5}
    scores = falling(0 + 1, 5, 10, 15, 20, 25, 30, 40, 45, 50, 60)
    run = make_run(tmp_path / "run", scores=scores, rates=rates)
    found = run_points(RunDirectory(run))
    assert [point.step for point in found] == [20, 25, 30, 40]
    assert [point.symbols for point in found] == [step * 512 for step in (20, 25, 30, 40)]
    assert found[0].bpb == scores[20]


def test_a_fit_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [10, 20, 40, 80, 160, 320]
    run = make_run(tmp_path / "run", scores=falling(*steps), rates=dict.fromkeys([1, *steps], 1.0))
    status = main(["fit", str(run), "--symbols", "512000", "--json"])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert status == 0 and document["c"] == pytest.approx(2.0, rel=1e-4)
    assert document["alpha"] == pytest.approx(0.5, rel=1e-3)
    assert document["projected_bpb"] == pytest.approx(2.0 + 3.0 / math.sqrt(1000), abs=1e-5)
    stored = json.loads((run / "fit.json").read_text())
    assert {name: stored[name] for name in ("c", "a", "alpha")} == {
        name: document[name] for name in ("c", "a", "alpha")
    }
    assert len(stored["points"]) == 6 and "leave_last_out_bpb" in stored
    assert "6 points" in captured.err and "extrapolation" in captured.err


def test_several_runs_share_a_curve_if_they_differ_in_seed_or_length(tmp_path: Path) -> None:
    rates = dict.fromkeys([1, 10, 20, 30, 40, 50], 1.0)
    one = make_run(tmp_path / "one", scores=falling(10, 20, 30), rates=rates)
    two = make_run(tmp_path / "two", "training.seed=5", "training.steps=99", scores=falling(40, 50), rates=rates)
    out = tmp_path / "fit.json"
    assert main(["fit", str(one), str(two), "--output", str(out)]) == 0
    assert len(json.loads(out.read_text())["points"]) == 5
    other = make_run(tmp_path / "other", "optimizer.matrix_lr=0.5", scores=falling(40, 50), rates=rates)
    runs = [(RunDirectory(path), RunDirectory(path).read_spec()) for path in (one, other)]
    with pytest.raises(UserError, match=r"optimizer.matrix_lr = 0.02, .* has 0.5: one curve belongs to one spec"):
        check_one_curve(runs)
    elsewhere = make_run(tmp_path / "elsewhere", scores=falling(40, 50), rates=rates, text="cd")
    runs[1] = (RunDirectory(elsewhere), RunDirectory(elsewhere).read_spec())
    with pytest.raises(UserError, match=f"sha256 {'ab' * 8}, .* with {'cd' * 8}: one curve belongs to one text"):
        check_one_curve(runs)
    renamed = make_run(tmp_path / "renamed", "data.train=copy", scores=falling(40, 50), rates=rates)
    check_one_curve([runs[0], (RunDirectory(renamed), RunDirectory(renamed).read_spec())])


@pytest.mark.parametrize(
    ("words", "message"), [(["nowhere"], "no run named"), (["RUN", "--symbols", "-1"], "--symbols")]
)
def test_bad_arguments(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", scores=falling(1, 2, 3, 4, 5), rates={1: 1.0, 5: 1.0})
    assert main(["fit", *(str(run) if word == "RUN" else word for word in words)]) == 2
    assert message in capsys.readouterr().err and not (run / "fit.json").exists()

"""`bytetwin fit`: finds the curve that made the points, takes only points at the full learning rate, and says how
far it may be off."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import UserError
from shared.runs.curve_fit import ScalingCurve, fit_curve, profile_interval
from shared.runs.metrics import Event
from shared.runs.run_directory import RunDirectory
from shared.runs.scaling_curve import LEVEL, Point, ScalingFit, is_on_curve, matching_fit, read_fit
from shared.spec import spec_to_toml
from shared.study.scaling import check_one_curve, fit_points, run_points
from tests.command_line import CommandLine
from tests.fake_study import read_json
from tests.fake_training import tiny_spec


def points_of(curve: ScalingCurve, symbols: list[int]) -> list[Point]:
    return [Point("run", t, t, curve.bpb(t)) for t in symbols]


@settings(max_examples=40)
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
    result = fit_points([Point("run", int(t), int(t), float(value)) for t, value in zip(symbols, bpb, strict=True)])
    residuals = bpb - [result.curve.bpb(float(t)) for t in symbols]
    assert result.residuals_bpb == pytest.approx(residuals, abs=1e-9)
    # With a constant in the curve the residuals have hardly a mean.
    assert result.r_squared == pytest.approx(1.0 - np.var(residuals) / np.var(bpb), abs=1e-7)
    before = fit_curve(symbols[:-1], bpb[:-1])
    assert before is not None and result.last_out_bpb == pytest.approx(bpb[-1] - before.bpb(float(symbols[-1])))


def test_a_curve_without_a_floor_ends_at_zero() -> None:
    found = fit_points(points_of(ScalingCurve(0.0, 50.0, 0.2), [10**k for k in range(4, 10)]))
    assert 0.0 <= found.curve.c < 1e-6 and found.curve.alpha == pytest.approx(0.2, rel=1e-4)


def test_leaving_out_the_last_point_shows_a_bend() -> None:
    """Points on a curve, but the last is 0.05 lower, as in a warm-down: the rest misses it by just that."""
    symbols = [10**6 * 2**k for k in range(8)]
    truth = ScalingCurve(1.2, 500.0, 0.4)
    *points, last = points_of(truth, symbols)
    found = fit_points([*points, replace(last, bpb=last.bpb - 0.05)])
    assert found.last_out_bpb == pytest.approx(-0.05, abs=1e-4)


def test_too_few_steps_or_no_fall_are_refused() -> None:
    curve = ScalingCurve(1.0, 10.0, 0.3)
    with pytest.raises(UserError, match="5 or more different steps at constant learning rate, there are 4"):
        fit_points([*points_of(curve, [1000, 2000, 3000, 4000]), *points_of(curve, [1000, 2000, 3000, 4000])])
    for slope in (0.001, 0.0):
        with pytest.raises(UserError, match="does not fall"):
            fit_points([Point("r", t, t, 1.0 + slope * t) for t in range(1, 8)])


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
    found, left_out = run_points(RunDirectory(run))
    assert [point.step for point in found] == [20, 25, 30, 40]
    assert [point.symbols for point in found] == [step * 512 for step in (20, 25, 30, 40)]
    assert {each.step: each.reason for each in left_out} == {
        **dict.fromkeys((1, 5, 10, 15), "in the warm-up"),
        **dict.fromkeys((45, 50), "in the warm-down"),
        60: "not between logged steps, so its learning rate is not known",
    }
    assert found[0].bpb == scores[20]


def test_steps_that_are_asked_for_must_be_at_the_full_rate(tmp_path: Path, cli: CommandLine) -> None:
    rates = {1: 0.5, **dict.fromkeys(range(10, 80, 10), 1.0), 80: 0.5, 90: 0.1}
    run = make_run(tmp_path / "run", scores=falling(1, *range(10, 100, 10)), rates=rates)
    for words, step, rate in (
        (["--from-step", 1], 1, "warm-up"),
        (["--from-step", 20, "--to-step", 90], 80, "warm-down"),
    ):
        assert f"{run}: the validation at step {step} is in the {rate}" in cli.refusal("fit", run, *words)
        assert not (run / "fit.json").exists()
    done = cli("fit", run, "--from-step", 20, "--to-step", 60)
    assert "5 points" in done.out and "left out: 5 outside of the steps asked for" in done.out
    assert "left out: 1 in the warm-up, 2 in the warm-down" in cli("fit", run).out
    assert [each["step"] for each in read_json(run / "fit.json")["left_out"]] == [1, 80, 90]


def scatter(curve: ScalingCurve, rng: np.random.Generator, runs: int, sd: float, sd_run: float) -> list[Point]:
    """Eight points of each run: the curve, an error of each point, and one of each run."""
    points = []
    for run in range(runs):
        shift = sd_run * rng.standard_normal()
        for t in range(50_000_000, 450_000_000, 50_000_000):
            points.append(Point(str(run), t, t, curve.bpb(t) + shift + sd * rng.standard_normal()))
    return points


@pytest.mark.parametrize(
    ("curve", "runs", "sd", "sd_run", "beyond"),
    [
        (ScalingCurve(1.165, 1175.0, 0.434), 1, 0.004, 0.0, 10),
        (ScalingCurve(0.0, 40.0, 0.18), 1, 0.004, 0.0, 5),
        (ScalingCurve(1.1, 200.0, 0.3), 3, 0.002, 0.006, 2),
    ],
)
def test_an_interval_covers_the_score_of_another_run(
    curve: ScalingCurve, runs: int, sd: float, sd_run: float, beyond: float
) -> None:
    """90 % of scores drawn far beyond the points lie in the 90 % interval, also where c is 0 or runs err as a whole,
    and it says something. Of 40 curves the share has a standard deviation of 5 %."""
    rng, at, hits, widths = np.random.default_rng(1), 4e8 * beyond, 0, []
    for _ in range(40):
        found = fit_points(scatter(curve, rng, runs, sd, sd_run)).fit.at(at, 0.9)
        assert found.low_bpb is not None and found.high_bpb is not None and found.beyond == beyond
        score = curve.bpb(at) + sd_run * rng.standard_normal() + sd * rng.standard_normal()
        hits += found.low_bpb <= score <= found.high_bpb
        widths.append(found.high_bpb - found.low_bpb)
    assert hits >= 32 and np.median(widths) < 0.12


def test_of_a_straight_line_the_interval_is_the_textbook_one() -> None:
    """One choice, so the profile is the prediction interval of ordinary least squares."""
    x, y = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0]), np.array([2.1, 2.9, 4.2, 4.8, 6.1, 8.0])
    design, new = np.stack([np.ones(6), x], axis=1), np.array([1.0, 9.0])
    best, low, high = profile_interval(design[None], new[None], y, parameters=2, level=0.95)
    slope, intercept = np.polyfit(x, y, 1)
    assert best == pytest.approx(intercept + 9 * slope)
    squares = float(np.sum((y - intercept - slope * x) ** 2))
    half = 2.7764451 * np.sqrt(squares / 4 * (1 + 1 / 6 + (9 - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)))
    assert (low, high) == pytest.approx((intercept + 9 * slope - half, intercept + 9 * slope + half), abs=1e-6)


def test_points_of_an_exact_curve_leave_no_doubt_and_few_points_give_no_interval() -> None:
    truth = ScalingCurve(1.2, 500.0, 0.4)
    exact = fit_points(points_of(truth, [10**6 * 2**k for k in range(8)])).fit.at(1e9)
    assert exact.low_bpb == pytest.approx(truth.bpb(1e9), abs=2e-3) == exact.high_bpb
    assert ScalingFit(truth).at(1e9).low_bpb is None
    assert ScalingFit(truth, tuple(points_of(truth, [1000, 2000, 3000, 4000]))).at(1e9).high_bpb is None


def test_preflight_finds_the_fit_of_a_run_on_the_same_curve(tmp_path: Path, cli: CommandLine) -> None:
    rates = dict.fromkeys([1, 50], 1.0)
    text = "ab" * 32
    for name, more in (("one", []), ("other", ["optimizer.matrix_lr=0.5"])):
        cli("fit", make_run(tmp_path / name, *more, scores=falling(10, 20, 30, 40, 50), rates=rates))
    alike = (
        "training.steps=9",
        "training.seed=3",
        "schedule.driver=time",
        "training.time_limit_s=9",
        "artifact.matrix.bits=4",
    )
    found = matching_fit(tiny_spec(*alike), text, tmp_path)
    assert found is not None and found.source == str(tmp_path / "one" / "fit.json") and len(found.points) == 5
    for bends in ("training.batch_symbols=1024", "model.ln_scale=true", "evaluation.val_symbols=8192"):
        assert matching_fit(tiny_spec(bends), text, tmp_path) is None
    assert matching_fit(tiny_spec(), "cd" * 32, tmp_path) is None
    (tmp_path / "one" / "fit.json").write_text('{"c": 1')
    assert matching_fit(tiny_spec(), text, tmp_path) is None
    assert matching_fit(tiny_spec("optimizer.matrix_lr=0.5"), text, tmp_path) is not None


@pytest.mark.parametrize("wrong", [{"c": -0.1}, {"a": -1.0}, {"alpha": 0.0}])
def test_a_curve_of_a_file_falls_to_a_floor(wrong: dict[str, float], tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({"c": 1.0, "a": 2.0, "alpha": 0.5, **wrong}))
    with pytest.raises(UserError, match="alpha must be above 0, a and c at least 0"):
        read_fit(path)


@pytest.mark.parametrize(
    "points", ["[1]", '[{"symbols": 1e6}]', '[{"symbols": 0, "bpb": 1}]', '[{"symbols": 5, "bpb": "x"}]']
)
def test_points_of_a_file_must_be_points(points: str, tmp_path: Path, cli: CommandLine) -> None:
    path = tmp_path / "fit.json"
    path.write_text(f'{{"c": 1.0, "a": 2.0, "alpha": 0.5, "points": {points}}}')
    assert f"--fit {path}: " in cli.refusal("preflight", "tiny", "--fit", path)


def test_a_fit_from_the_command_line(tmp_path: Path, cli: CommandLine) -> None:
    steps = [10, 20, 40, 80, 160, 320]
    run = make_run(tmp_path / "run", scores=falling(*steps), rates=dict.fromkeys([1, *steps], 1.0))
    done = cli("fit", run, "--symbols", "512000", "--json")
    document = done.document
    assert done.status == 0 and document["c"] == pytest.approx(2.0, rel=1e-4)
    assert document["alpha"] == pytest.approx(0.5, rel=1e-3)
    assert document["projected_bpb"] == pytest.approx(2.0 + 3.0 / math.sqrt(1000), abs=1e-5)
    assert document["low_bpb"] <= document["projected_bpb"] <= document["high_bpb"] and document["confidence"] == LEVEL
    assert read_fit(run / "fit.json").curve.alpha == document["alpha"] and is_on_curve(tiny_spec(), tiny_spec())
    stored = read_json(run / "fit.json")
    assert [stored[name] for name in ("c", "a", "alpha")] == [document[name] for name in ("c", "a", "alpha")]
    assert len(stored["points"]) == 6 and "leave_last_out_bpb" in stored
    assert "6 points" in done.err and "extrapolation" in done.err


def test_several_runs_share_a_curve_if_they_differ_in_seed_or_length(tmp_path: Path, cli: CommandLine) -> None:
    rates = dict.fromkeys([1, 10, 20, 30, 40, 50], 1.0)
    one = make_run(tmp_path / "one", scores=falling(10, 20, 30), rates=rates)
    two = make_run(tmp_path / "two", "training.seed=5", "training.steps=99", scores=falling(40, 50), rates=rates)
    out = tmp_path / "fit.json"
    assert cli("fit", one, two, "--output", out).status == 0
    assert len(read_json(out)["points"]) == 5
    other = make_run(tmp_path / "other", "optimizer.matrix_lr=0.5", scores=falling(40, 50), rates=rates)
    elsewhere = make_run(tmp_path / "elsewhere", scores=falling(40, 50), rates=rates, text="cd")
    renamed = make_run(tmp_path / "renamed", "data.train=copy", scores=falling(40, 50), rates=rates)

    def check(*paths: Path) -> None:
        check_one_curve([(RunDirectory(path), RunDirectory(path).read_spec()) for path in paths])

    with pytest.raises(UserError, match=r"optimizer.matrix_lr = 0.02, .* has 0.5: one curve belongs to one spec"):
        check(one, other)
    with pytest.raises(UserError, match=f"sha256 {'ab' * 8}, .* with {'cd' * 8}: one curve belongs to one text"):
        check(one, elsewhere)
    check(one, renamed)


@pytest.mark.parametrize(
    ("words", "message"), [(["nowhere"], "no run named"), (["RUN", "--symbols", "-1"], "--symbols")]
)
def test_bad_arguments(words: list[str], message: str, tmp_path: Path, cli: CommandLine) -> None:
    run = make_run(tmp_path / "run", scores=falling(1, 2, 3, 4, 5), rates={1: 1.0, 5: 1.0})
    assert message in cli.refusal("fit", *(run if word == "RUN" else word for word in words))
    assert not (run / "fit.json").exists()

"""Figures of preflight's rows that follow from a measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data.datasets import open_split
from shared.engine.device_facts import DeviceFacts
from shared.engine.flops import training_flops
from shared.engine.hardware import PEAKS, find_peak
from shared.engine.package import create_engine, engine_package
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINES
from shared.model.stages import StepNumbers
from shared.preflight import Question
from shared.preflight import speed_rows as speed
from shared.preflight.ask_rows import prepare
from shared.preflight.data_rows import enough_data_row
from shared.preflight.evaluation_rows import evaluation_time_row
from shared.preflight.machine_rows import clock_row, driver_row
from shared.preflight.measure import StepFailure, StepMeasurement, measure_here
from shared.preflight.memory import estimate_memory
from shared.preflight.question import Context
from shared.preflight.workload import measured_spec, plan_workload, rows_of_rank
from shared.runs.curve_fit import ScalingCurve
from shared.runs.scaling_curve import ScalingFit
from shared.spec import Spec, load_spec
from tests.datasets import write_dataset
from tests.fake_training import tiny_spec

GIB = 1 << 30
H100 = DeviceFacts("gpu", ("NVIDIA H100 80GB HBM3",) * 8, 79 * GIB, 80 * GIB, "torch 2.13.0", "NVIDIA driver 570.1")
CPU = DeviceFacts("cpu", ("CPU, 2 threads",), 8 * GIB, 16 * GIB, "torch 2.13.0+cpu")
STEP = StepMeasurement("H100", True, 0.05, 0.0, 0.05, 20.0, 10**9, 5 * 10**9, 6 * 10**9, 6 * 10**9, 5.5, 6e14)

every_engine = pytest.mark.parametrize("engine", list(ENGINES))


def make_context(
    spec: Spec, facts: DeviceFacts = H100, step: StepMeasurement | StepFailure | None = STEP, **question: Any
) -> Context:
    asked = Question(spec, "torch", **{"ranks": 1, **question})
    _, group_rows = rows_of_rank(spec, asked.ranks, facts.workers)
    memory = estimate_memory(measured_spec(spec, facts), "torch", group_rows)
    return Context(asked, facts, plan_workload(spec, asked.ranks, facts, memory), memory, step)


def h100(*overrides: str) -> Spec:
    # Not left to the device: these figures are worked out by hand.
    return load_spec("h100", ("training.micro_batch_symbols=131072", *overrides))


def test_a_run_against_the_clock() -> None:
    spec = h100("training.time_limit_s=600.0", "training.steps=1000000")
    context = make_context(spec, ranks=8, price=2.5, fit=ScalingFit(ScalingCurve(0.8, 5.0, 0.2)))
    plan = speed.plan_run(context)
    assert plan.steps == 12_000 and plan.symbols == 12_000 * spec.training.batch_symbols
    assert plan.train_s == pytest.approx(600)
    assert speed.cost_row(context).values["dollars"] == pytest.approx(8 * 600 / 3600 * 2.5)
    assert speed.projected_score_row(context).values["bpb"] == pytest.approx(0.8 + 5.0 * plan.symbols**-0.2)
    assert speed.step_time_row(context).values["symbols_per_s"] == pytest.approx(spec.training.batch_symbols / 0.05)
    assert speed.plan_run(make_context(h100("training.steps=100"), ranks=8)).steps == 100


LATER_LOOP = (
    *("model.num_layers=2", "model.loop.extra_loops=2", "model.loop.last_layer=1"),
    "schedule.loop.start_frac=0.5",
)


def test_a_run_whose_loop_starts_later() -> None:
    """Half of its time or of its steps go to the short function, by its share of the operations."""
    steps = tiny_spec(*LATER_LOOP, "training.steps=1000")
    plain = tiny_spec(*LATER_LOOP[:1])
    share = training_flops(plain).per_symbol / training_flops(steps).per_symbol
    assert 0.3 < share < 0.6
    plan = speed.plan_run(make_context(steps, step=replace(STEP, step_s=0.1)))
    assert plan.steps == 1000 and plan.train_s == pytest.approx(500 * 0.1 * (1 + share))
    clock = (*LATER_LOOP, "schedule.driver=time", "training.time_limit_s=100.0", "training.steps=1000000")
    plan = speed.plan_run(make_context(tiny_spec(*clock), step=replace(STEP, step_s=0.1)))
    assert plan.steps == pytest.approx(500 * (1 + 1 / share), rel=5e-3)
    assert plan.train_s is not None and 99 < plan.train_s <= 100


@pytest.mark.slow
@every_engine
def test_the_longest_function_is_the_one_that_is_measured(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: set[int] = set()
    real = create_engine(engine, tiny_spec()).__class__.train_step

    def seen(self: Engine, x: np.ndarray, numbers: StepNumbers) -> Any:
        stages.add(numbers.stage)
        return real(self, x, numbers)  # type: ignore[arg-type]

    monkeypatch.setattr(create_engine(engine, tiny_spec()).__class__, "train_step", seen)
    measure_here(tiny_spec(*LATER_LOOP), engine, 8, 1.0)
    assert stages == {1}


def test_share_of_peak_is_operations_over_peak() -> None:
    context = make_context(h100(), ranks=8)
    symbols_per_s = context.spec.training.batch_symbols / 8 / 0.05
    row = speed.mfu_row(context)
    assert row.verdict == "go"
    assert row.values["mfu"] == pytest.approx(training_flops(context.spec).per_symbol * symbols_per_s / 989.4e12)
    assert row.values["mfu_with_optimizer"] > row.values["mfu"]
    impossible = make_context(h100(), ranks=8, step=replace(STEP, step_s=1e-4))
    assert speed.mfu_row(impossible).verdict == "no-go"
    float32 = make_context(h100("training.dtype=float32"), ranks=8)
    assert speed.mfu_row(float32).values["peak_flops_per_s"] == pytest.approx(66.9e12)
    unlisted = make_context(h100(), facts=replace(H100, names=("NVIDIA Z9",)))
    assert speed.mfu_row(unlisted).values["peak_flops_per_s"] == STEP.product_flops_per_s


def test_a_gpu_spec_on_a_cpu_names_the_gpu() -> None:
    context = make_context(h100(), facts=CPU, price=2.0, fit=ScalingFit(ScalingCurve(0.8, 5.0, 0.2)))
    for ask in (speed.memory_row, speed.step_time_row, speed.mfu_row, speed.projected_score_row, driver_row):
        row = ask(context)
        assert row.verdict == "unknown" and "needs a GPU" in row.how
    # What is measured on a CPU is a whole process, with interpreter and libraries; on a GPU it is what is allocated.
    for facts, alone in ((CPU, True), (H100, False)):
        assert ("estimate without the process itself" in speed.memory_row(make_context(h100(), facts)).how) == alone
    cost = speed.cost_row(context)
    assert cost.verdict == "go" and "at most" in cost.figure and cost.values["dollars"] == pytest.approx(1 / 3)
    assert speed.cost_row(
        make_context(h100("schedule.driver=steps", "training.time_limit_s=0.0"), CPU, price=2.0)
    ).verdict == ("unknown")


@pytest.mark.usefixtures("datasets")
def test_a_gpu_spec_on_a_cpu_may_still_have_text_enough() -> None:
    write_dataset(train=[bytes(40_000)])
    short = h100("data.train=toy", "training.steps=1", "training.batch_symbols=32768", "model.seq_len=2048")
    assert enough_data_row(make_context(short, CPU)).verdict == "go"
    row = enough_data_row(make_context(h100("data.train=toy"), CPU))
    assert row.verdict == "unknown" and "needs a GPU" in row.how


def test_a_time_limit_for_no_steps() -> None:
    context = make_context(h100("training.time_limit_s=0.5"))
    assert speed.step_time_row(context).verdict == "no-go" and "fewer than" in speed.step_time_row(context).how
    none = make_context(h100("training.time_limit_s=0.01"), fit=ScalingFit(ScalingCurve(0.8, 5.0, 0.2)))
    assert speed.projected_score_row(none).verdict == "unknown"


def test_a_reserve_is_no_time_for_steps() -> None:
    reserved = h100("training.steps=1000000", "training.reserve_s=60.0")
    plan = speed.plan_run(make_context(reserved, ranks=8))
    assert plan.steps == 10_800 and plan.train_s == pytest.approx(600)
    assert "60 s of which are reserved" in speed.step_time_row(make_context(reserved, ranks=8)).figure


@pytest.mark.parametrize(("reserve_s", "verdict"), [(5.0, "no-go"), (50.0, "go")])
def test_calibration_on_training_text_needs_a_reserve(reserve_s: float, verdict: str) -> None:
    """256 windows of 2,048 symbols are as many as 16 steps of 32,768."""
    changes = (
        "artifact.matrix.rounding='gptq'",
        "artifact.calibration.source='train'",
        "artifact.calibration.windows=256",
        "artifact.calibration.window_symbols=2048",
        "model.seq_len=2048",
    )
    spec = h100(*changes, f"training.reserve_s={reserve_s}", "training.batch_symbols=32768", "training.steps=10000")
    row = speed.step_time_row(make_context(spec, step=replace(STEP, step_s=0.5)))
    assert row.verdict == verdict and row.values["calibration_s"] == pytest.approx(8.0)
    assert "s of which are reserved for at most 8.00 s of calibration on training text" in row.figure
    assert ("reserve_s = 5 may be too short" in row.how) == (verdict == "no-go")


@pytest.mark.parametrize(
    ("decay", "steps", "verdict"),
    [(0.9999, 20, "no-go"), (0.9, 9, "no-go"), (0.9, 10, "go"), (0.95, 60, "go"), (0.0, 1, "go")],
)
def test_an_average_must_fit_into_the_run(decay: float, steps: int, verdict: str) -> None:
    spec = tiny_spec(f"training.ema_decay={decay}", f"training.steps={steps}")
    row = speed.average_row(make_context(spec, CPU, step=replace(STEP, step_s=10.0)))
    assert row.verdict == verdict
    assert row.values["memory_steps"] == (pytest.approx(1 / (1 - decay)) if decay else 0.0)
    if verdict == "no-go":
        assert f"at most {1 - 1 / steps:.4g} fits {steps} steps" in row.how


def test_an_average_in_a_run_by_the_clock() -> None:
    """h100 keeps 333 steps; the limit makes the number of steps, and without a GPU only too few are known."""
    assert speed.average_row(make_context(h100(), ranks=8)).verdict == "go"
    assert speed.average_row(make_context(h100("training.time_limit_s=10"), ranks=8)).verdict == "no-go"
    assert speed.average_row(make_context(h100(), CPU)).verdict == "unknown"
    assert speed.average_row(make_context(h100("training.steps=300"), CPU)).verdict == "no-go"


def test_memory_of_a_gpu_leaves_room_for_its_driver_but_that_of_a_mac_does_not() -> None:
    free, larger = STEP.peak_bytes + speed.GPU_RESERVE_BYTES, replace(STEP, scored_bytes=9 * 10**9)
    mac = DeviceFacts(
        "gpu", ("Apple M5 (Metal)",), STEP.peak_bytes, 16 * GIB, "mlx 0.32.4", "Metal", shares_memory=True
    )
    for facts, step, verdict in (
        (replace(H100, free_bytes=free), STEP, "go"),
        (replace(H100, free_bytes=free - 1), STEP, "no-go"),
        (mac, STEP, "go"),
        # A validation counts too.
        (replace(H100, free_bytes=11 * 10**9), larger, "go"),
        (replace(H100, free_bytes=11 * 10**9 - 1), larger, "no-go"),
    ):
        row = speed.memory_row(make_context(h100(), facts, step))
        assert row.verdict == verdict
        is_of_validation = "peak of a validation on evaluation.batch_symbols = 131,072" in row.how
        assert is_of_validation == (step is larger)


@pytest.mark.parametrize("products", ["float32", "tf32"])
def test_the_peak_is_that_of_how_the_measured_step_multiplied(products: Any) -> None:
    step = replace(STEP, float32_products=products)
    assert (
        f"data sheet, dense {products})" in speed.mfu_row(make_context(h100("training.dtype=float32"), step=step)).how
    )
    assert "data sheet, dense bfloat16)" in speed.mfu_row(make_context(h100(), step=step)).how


def test_memory_is_scaled_by_the_windows_left_out() -> None:
    context = make_context(h100("training.dtype=float32"), facts=CPU)
    work = context.workload
    assert work.left_out == 64 * 2048 / work.measured_symbols > 1
    assert work.passes == context.spec.training.batch_symbols / work.measured_symbols
    expected = STEP.start_bytes + (STEP.backward_bytes - STEP.start_bytes) * work.left_out
    row = speed.memory_row(context)
    assert speed.step_time_row(context).verdict == "go"
    assert row.values["peak_bytes"] == pytest.approx(max(STEP.peak_bytes, expected), rel=1e-9)
    assert row.verdict == "no-go" and "scaled" in row.how


def test_gpus_must_be_alike_and_enough() -> None:
    assert driver_row(make_context(h100(), ranks=8)).verdict == "go"
    assert "16 GPUs" in driver_row(make_context(h100(), ranks=16)).how
    mixed = replace(H100, names=("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"))
    row = driver_row(make_context(h100(), facts=mixed, ranks=2))
    assert row.verdict == "no-go" and "differ" in row.how


def test_ranks_of_several_nodes() -> None:
    """Each node has its part of the ranks; memory, time and cost are those of as many ranks anywhere."""
    two = make_context(h100(), ranks=16, nodes=2, price=2.5)
    one = make_context(h100(), ranks=16, price=2.5)
    assert driver_row(two).verdict == "go" and "8 of 8 GPUs" in driver_row(two).how
    assert driver_row(one).verdict == "no-go" and "--nodes" in driver_row(one).how
    assert driver_row(make_context(h100(), ranks=32, nodes=2)).verdict == "no-go"
    for ask in (speed.memory_row, speed.step_time_row, speed.cost_row):
        assert ask(two).verdict == "go" and ask(two).values == ask(one).values
    assert speed.cost_row(two).values["gpu_hours"] == pytest.approx(16 * speed.plan_run(two).train_s / 3600)  # type: ignore[operator]
    assert two.workload.rank_rows == h100().training.batch_symbols // 2048 // 16


def test_ranks_on_a_cpu_share_it() -> None:
    """Two ranks with half of the batch each take as long as one with all of it; on GPUs each has its own."""
    spec = tiny_spec("training.steps=30")
    for facts, expected in ((CPU, 2), (H100, 1)):
        row, plan = (ask(make_context(spec, facts, ranks=2)) for ask in (speed.step_time_row, speed.plan_run))
        assert row.values["step_s"] == expected * STEP.step_s
        assert plan.train_s == pytest.approx(30 * expected * STEP.step_s)
        assert ("2 of them share this CPU" in row.how) == (facts is CPU)
    assert speed.step_time_row(make_context(spec, CPU, ranks=2, nodes=2)).values["step_s"] == STEP.step_s


def test_memory_of_a_cpu_is_divided_among_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    package = replace(engine_package("torch"), device_facts=lambda: CPU)
    monkeypatch.setattr("shared.preflight.ask_rows.engine_package", lambda engine: package)
    monkeypatch.setattr("shared.preflight.ask_rows.measure_step", lambda *words: replace(STEP, full=True))
    contexts = {ranks: prepare(Question(tiny_spec(), "torch", ranks)) for ranks in (1, 2, 8)}
    assert {ranks: context.facts.free_bytes for ranks, context in contexts.items()} == {1: 8 * GIB, 2: 4 * GIB, 8: GIB}
    assert [speed.memory_row(context).verdict for context in contexts.values()] == ["go", "no-go", "no-go"]
    assert "for each of 8 ranks" in speed.memory_row(contexts[8]).how
    asked = [Question(tiny_spec(), "torch", ranks, nodes=nodes) for ranks, nodes in ((1, 1), (8, 1), (8, 2))]
    assert [each.trainers for each in asked] == ["1 rank", "8 ranks", "8 ranks on 2 nodes"]
    assert [each.ranks_per_node for each in asked] == [1, 8, 4]


def test_a_clock_of_the_past_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tiny_spec(), facts=CPU)
    assert clock_row(context).verdict == "go"
    monkeypatch.setattr("shared.preflight.machine_rows.time.time", lambda: 1.0e9)
    assert clock_row(context).verdict == "no-go"


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3 (CUDA 12.8)", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA RTX A4000", None),
        ("Tesla T4", None),
        ("Apple M3 Max", None),
    ],
)
def test_peaks_by_device_name(device: str, name: str | None) -> None:
    found = find_peak(device)
    assert (found[0] if found else None) == name


def test_peaks_are_plausible() -> None:
    for name, peak in PEAKS:
        assert find_peak(f"NVIDIA {name}") == (name, peak)
        assert peak.bfloat16 / peak.tf32 == pytest.approx(2, rel=0.02)
        assert peak.float32 <= peak.tf32 * 1.02


@pytest.mark.parametrize(
    ("limit_s", "ranks", "alone_s", "verdict", "figure"),
    [
        (0.0, 1, 217.0, "go", "3:37"),
        (600.0, 1, 217.0, "go", "3:37 of 10:00"),
        (600.0, 1, 868.0, "no-go", "14:28 of 10:00"),
        (600.0, 8, 868.0, "go", "1:48 of 10:00"),
    ],
)
def test_the_time_of_the_score(limit_s: float, ranks: int, alone_s: float, verdict: str, figure: str) -> None:
    spec = h100(f"evaluation.time_limit_s={limit_s}", "data.heldout=builtin")
    # The text is another one under another release of Python.
    symbols = open_split("builtin", "heldout", spec.vocabulary).num_symbols
    step = replace(STEP, evaluated_s=alone_s / symbols)
    row = evaluation_time_row(make_context(spec, step=step, ranks=ranks))
    assert row.verdict == verdict
    assert row.values["evaluation_s"] == pytest.approx(alone_s / ranks)
    assert row.figure == figure


def test_the_time_of_the_score_needs_the_text_and_the_machine() -> None:
    missing = h100("data.heldout=nowhere")
    assert "needs the held-out text" in evaluation_time_row(make_context(missing)).how
    assert "needs a GPU" in evaluation_time_row(make_context(h100("data.heldout=builtin"), CPU)).how
    assert "no step was measured" in evaluation_time_row(make_context(h100(), step=None)).how

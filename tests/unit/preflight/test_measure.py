"""Measurements of preflight: a step, a validation, the score of a text, the facts of a device."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuda_train.engine import TrainingEngine
from shared.engine.device_facts import host_memory_bytes, peak_resident_bytes, quickest_s
from shared.engine.package import create_engine, engine_package
from shared.engine.synthetic import synthetic_start
from shared.preflight import speed_rows as speed
from shared.preflight.measure import StepFailure, measure_evaluation, measure_here, measure_step
from tests.fake_training import tiny_spec
from tests.unit.preflight.test_figures import CPU, H100, every_engine, make_context


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in place of the Python that measures."""

    def replace_by(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace_by


@pytest.mark.parametrize(
    ("script", "out_of_memory", "reason"),
    [
        ("kill -9 $$", True, "killed by the system"),
        ("kill -11 $$", False, "signal 11"),
        ("echo first >&2; echo 'ImportError: x' >&2; exit 3", False, "failed: ImportError: x"),
        ('echo \'{"reason": "CUDA out of memory", "out_of_memory": true}\'', True, "CUDA out of memory"),
    ],
)
def test_a_measurement_that_dies_is_a_failure(
    script: str, out_of_memory: bool, reason: str, python: Callable[[str], None]
) -> None:
    python(script)
    failure = measure_step(tiny_spec(), "torch", 8, 1.0)
    assert isinstance(failure, StepFailure)
    assert failure.out_of_memory == out_of_memory and reason in failure.reason
    context = make_context(tiny_spec(), facts=CPU, step=failure)
    assert (speed.memory_row(context).verdict == "no-go") == out_of_memory
    assert (speed.step_time_row(context).verdict == "no-go") == (not out_of_memory)
    assert speed.mfu_row(context).verdict == "unknown"


@pytest.mark.slow
@every_engine
def test_a_step_is_measured_in_full_and_in_part(engine: str) -> None:
    for rows, passes in ((8, 1.0), (2, 4.0)):
        step = measure_here(tiny_spec(), engine, rows, passes)
        assert step.full == (passes == 1 or engine_package(engine).device_facts().kind == "gpu")
        assert step.nats == pytest.approx(np.log(256), abs=0.1)
        assert 0 < step.start_bytes <= step.backward_bytes <= step.peak_bytes
        assert step.step_s > 0 and step.group_s > 0 and step.first_s > 0 and step.product_flops_per_s > 1e8
        if not step.full:
            assert step.step_s == pytest.approx(step.fixed_s + 4 * step.group_s)


@every_engine
def test_facts_of_a_device(engine: str) -> None:
    facts = engine_package(engine).device_facts()
    assert facts.names and facts.framework.startswith(engine) and facts.workers >= 1
    assert 0 < facts.free_bytes <= facts.total_bytes
    assert facts.alike
    assert engine_package(engine).matrix_product_flops_per_s("float32") > 1e8


@pytest.mark.parametrize(("call_s", "calls"), [(0.125, 6), (0.75, 2), (4.0, 1)])
def test_what_takes_long_is_not_timed_often(call_s: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_s = [0.0]
    monkeypatch.setattr("shared.engine.device_facts.time.perf_counter", lambda: ends_s[-1])
    assert quickest_s(lambda: ends_s.append(ends_s[-1] + call_s)) == call_s
    assert len(ends_s) == 1 + calls


def test_memory_of_the_host() -> None:
    available, total = host_memory_bytes()
    assert 0 < peak_resident_bytes() < total and 0 < available <= total


def test_a_validation_is_measured_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU under the name of a GPU, which counts by resident memory: windows enough to show."""
    package = replace(engine_package("torch"), device_facts=lambda: H100)
    monkeypatch.setattr("shared.preflight.measure.engine_package", lambda engine: package)
    scored: list[tuple[int, ...]] = []
    monkeypatch.setattr(TrainingEngine, "score", lambda self, x: scored.append(x.shape) or np.ones(x.shape))
    monkeypatch.setattr("cuda_train.engine.compiled", lambda function, what, alike=False: function)
    # At the start, after a score, after a backward pass and after a step: what is recorded keeps its memory.
    for compiles, at_most in ((False, 900), (True, 900 + 300)):
        peaks = iter([100, 400, 800, 900])
        monkeypatch.setattr(TrainingEngine, "peak_memory_bytes", lambda self, peaks=peaks: next(peaks))
        changes = ("evaluation.batch_symbols=1024", f"training.compile={str(compiles).lower()}")
        step = measure_here(tiny_spec(*changes), "torch", 8, 1.0)
        assert scored.pop(0) == (16, 64) and step.scored_bytes == at_most
        scored.clear()


@every_engine
@pytest.mark.parametrize("words", [(), ("kind=score_first", "chunk_symbols=100", "epochs=3")], ids=["plain", "adapted"])
def test_the_score_of_a_text_is_measured(engine: str, words: tuple[str, ...]) -> None:
    spec = tiny_spec(*(f"evaluation.adaptation.{word}" for word in words))
    scorer = create_engine(engine, spec)
    scorer.initialise(synthetic_start(spec))
    begin = time.perf_counter()
    each_s = measure_evaluation(scorer, 256)
    assert 0.0 < each_s * 256 < 3.0 * (time.perf_counter() - begin)

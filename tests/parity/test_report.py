"""The report, the command, the reduced spec, and machines with one engine or none."""

from __future__ import annotations

import argparse
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from shared.cli import parity as command
from shared.cli import spec as spec_command
from shared.errors import SpecError, UserError
from shared.parity import ParityRow, compare_engines, print_report, run_parity
from shared.parity.exact_checks import batch_rows
from shared.parity.result import ParityReport, relative_differences, relative_l2, worst_relative_l2
from shared.parity.trace import TracedOutput, first_deviation
from shared.spec import load_spec, preset_names, spec_to_dict
from shared.spec.reduced import LEARNING_RATES, reduced_spec


def arguments(module: object, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    module.configure(parser)
    return parser.parse_args(words)


def test_one_engine_is_compared_with_the_oracle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare_engines, "available_engines", lambda: ["torch"])
    report = run_parity(load_spec("tiny"), steps=12)
    assert [row for row in report.rows if not row.passed] == []
    checks = {row.check for row in report.rows if row.pair == "numpy - torch"}
    assert {"parameters after 10 steps", "loss curve, 12 steps", "logits", "directional derivative"} <= checks
    assert "only one engine is installed here: torch is compared with the NumPy oracle" in printed(report)


def printed(report: ParityReport, width: int = 120) -> str:
    """What a terminal of that width shows."""
    console = Console(width=width, force_terminal=True, no_color=True, highlight=False, file=io.StringIO())
    print_report(console, report)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())


def test_the_table_shows_a_failure_at_any_width():
    rows = (
        ParityRow("logits", "numpy - mlx", 3.2e-2, 1e-5, "nats, max abs", "first deviates at rope after layers.0"),
        ParityRow("logits", "numpy - torch", 2e-6, 1e-5, "nats, max abs", "row 0, position 1, symbol 2"),
        ParityRow("artifact", "mlx - torch", 0, 0.0, "bytes differ", "43,018 bytes"),
    )
    report = ParityReport(
        "tiny", load_spec("tiny"), ("training.compile True -> False",), ("numpy", "mlx", "torch"), rows
    )
    for width in (80, 120):
        text = printed(report, width)
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        (line,) = [line for line in lines if line.startswith(" logits")]
        assert line.split()[:7] == ["logits", "numpy", "-", "mlx", "3.2e-02", "1e-05", "FAIL"]
        assert "FAIL logits, numpy - mlx: first deviates at rope after layers.0" in text
        assert "1 of 3 rows failed" in text and "training.compile True -> False" in text
        assert ("row 0, position 1, symbol 2" in text) == (width == 120)


def test_no_engine_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare_engines, "available_engines", list)
    with pytest.raises(UserError, match="no engine is installed"):
        run_parity(load_spec("tiny"))


def test_a_bug_in_the_updates_of_the_only_engine_is_caught(monkeypatch: pytest.MonkeyPatch):
    import cuda_train.engine as engine
    from shared.optim import optimizer_step

    def wrong(ops, spec, params, grads, state, norm, hyper, *rest):
        slower = {**hyper, "momentum": hyper["momentum"] * 0.9}
        return optimizer_step(ops, spec, params, grads, state, norm, slower, *rest)

    monkeypatch.setattr(compare_engines, "available_engines", lambda: ["torch"])
    monkeypatch.setattr(engine, "optimizer_step", wrong)
    rows = [row for row in run_parity(load_spec("tiny"), steps=10).rows if not row.passed]
    assert [row.check for row in rows] == ["parameters after 2 steps"]
    assert rows[0].worst.endswith("(Muon)")


def test_the_command_gives_a_document_and_a_status(capsys: pytest.CaptureFixture[str], monkeypatch):
    result = command.run(arguments(command, "tiny", "--steps", "2"))
    assert result.status == 0
    document = json.loads(json.dumps(result.document, allow_nan=False))
    assert document["passed"] and document["implementations"] == ["numpy", "mlx", "torch"]
    assert document["name"] == "tiny" and len(document["rows"]) > 20
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "model.seq_len" not in captured.out and "training.compile True -> False" in captured.out

    failing = ParityRow("logits", "mlx - torch", 1.0, 1e-5, "nats, max abs", "rope")
    report = ParityReport("tiny", load_spec("tiny"), (), ("numpy", "mlx", "torch"), (failing,))
    monkeypatch.setattr(command, "run_parity", lambda *args, **kwargs: report)
    assert command.run(arguments(command, "tiny")).status == 1


def test_reduction_keeps_the_model_and_says_what_it_changed():
    spec = load_spec("itchy", ["training.dtype=bfloat16", "optimizer.ns_dtype=bfloat16"])
    small, notes = reduced_spec(spec, steps=7)
    assert small.model == spec.model.model_copy(update={"seq_len": 60})
    assert small.training.batch_symbols == 3 * 60 and small.training.micro_batch_symbols == 2 * 60
    assert small.training.dtype == small.optimizer.ns_dtype == "float32"
    changed = {
        f"{section}.{field}"
        for section in ("model", "vocabulary", "optimizer", "schedule", "data", "training", "artifact", "budget")
        for field, value in spec_to_dict(spec)[section].items()
        if spec_to_dict(small)[section][field] != value
    }
    rates = {f"optimizer.{name}" for name in LEARNING_RATES}
    assert {note.split(" ")[0] for note in notes if not note.startswith("learning rates")} == changed - rates
    assert rates <= changed and any(note.startswith("learning rates x") for note in notes)


def test_a_spec_that_is_already_small_is_hardly_reduced():
    small, _ = reduced_spec(load_spec("tiny"), steps=5)
    again, notes = reduced_spec(small, steps=5)
    assert again == small and notes == ()


@pytest.mark.parametrize("seq_len", [0, 12, 25, 70])
def test_a_sequence_length_that_does_not_fit(seq_len: int):
    with pytest.raises(SpecError, match=rf"--seq-len {seq_len}: must be a multiple of model.patch_size \(12\)"):
        reduced_spec(load_spec("itchy"), steps=5, seq_len=seq_len)


def test_steps_must_be_positive():
    with pytest.raises(SpecError, match="--steps 0: must be 1 or more"):
        run_parity(load_spec("tiny"), steps=0)


def test_batches_that_depend_on_what_was_read_before_are_caught():
    class Stateful:
        calls = 0

        def batch(self, step: int) -> np.ndarray:
            return self.rows(step, 0, 3)

        def rows(self, step: int, first: int, count: int) -> np.ndarray:
            self.calls += 1
            return np.full((count, 4), self.calls, np.int32)

    rows = batch_rows(Stateful, 3)
    assert [row.passed for row in rows] == [False, False, False]
    assert rows[0].worst == "step 0"


def test_measures():
    a = {"big": np.array([3.0, 4.0]), "small": np.array([1e-9])}
    b = {"big": np.array([3.0, 4.0 + 5e-3]), "small": np.array([-1e-9])}
    assert worst_relative_l2(a, b) == (2.0, "small")
    found = relative_differences(a, b, small_frac=1e-3)
    assert max(found, key=found.__getitem__) == "big" and found["big"] == pytest.approx(1e-3, rel=1e-2)
    assert relative_l2(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_l2(np.array([np.nan]), np.array([1.0])) == np.inf
    assert not ParityRow("check", "pair", float("nan"), 1.0, "").passed


def test_the_trace_names_the_first_operation_that_parts():
    value = np.ones(4)
    left = [TracedOutput(label, value) for label in ("embedding", "linear", "rope", "attention")]
    right = [
        TracedOutput("embedding", value),
        TracedOutput("linear", value * (1 + 1e-7)),
        TracedOutput("rope", value * 1.01),
        TracedOutput("attention", value * 1.05),
    ]
    assert first_deviation(left, right).startswith("first deviates at rope")
    assert "engine's own path" in first_deviation(left, left)
    assert "different operations" in first_deviation(left, right[:-1])


def test_spec_command(capsys: pytest.CaptureFixture[str]):
    result = spec_command.run(arguments(spec_command, "itchy", "--set", "training.steps=9"))
    assert result.document["parameters"]["total"] == 17_480_536
    out = capsys.readouterr().out
    assert f"spec_id {result.document['spec_id']}" in out and "17,480,536" in out
    assert result.document["spec"]["training"]["steps"] == 9
    schema = spec_command.run(arguments(spec_command, "--schema"))
    assert json.loads(capsys.readouterr().out) == schema.document
    listed = spec_command.run(arguments(spec_command, "--list")).document["presets"]
    assert listed["tiny"].startswith("The smallest honest model")
    assert listed["itchy"].endswith("one MLP head per position.")
    assert all(description.endswith(".") for description in listed.values())
    with pytest.raises(SpecError, match=f"SPEC is missing; presets: {', '.join(preset_names())}"):
        spec_command.run(arguments(spec_command))
    capsys.readouterr()
    spec_command.run(arguments(spec_command, "tiny", "--json"))
    assert capsys.readouterr().out == ""

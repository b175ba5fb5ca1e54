"""Answers every row of the table, after one training step was measured in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from shared.engine.device_facts import DeviceFacts
from shared.engine.microbatch import with_micro_batches
from shared.engine.package import available_engines, engine_package
from shared.engine.ranks import MAX_RANKS
from shared.engine.registry import ENGINE_EXTRAS
from shared.errors import UserError
from shared.preflight.data_rows import enough_data_row, overlap_row, shards_row
from shared.preflight.evaluation_rows import evaluation_time_row
from shared.preflight.function_rows import causality_row, gradients_row, parameters_row, parity_row
from shared.preflight.machine_rows import clock_row, driver_row
from shared.preflight.measure import measure_step
from shared.preflight.memory import estimate_memory
from shared.preflight.question import Context, Question
from shared.preflight.row import ROWS, VERDICTS, Row, no_go
from shared.preflight.size_rows import artifact_row, code_row, disk_row
from shared.preflight.speed_rows import average_row, cost_row, memory_row, mfu_row, projected_score_row, step_time_row
from shared.preflight.workload import measured_spec, plan_workload, resized, rows_of_rank
from shared.spec import spec_id, spec_to_dict

ASKED: dict[str, Callable[[Context], Row]] = {
    "parity": parity_row,
    "causality": causality_row,
    "gradients": gradients_row,
    "parameters": parameters_row,
    "artifact_bytes": artifact_row,
    "code_bytes": code_row,
    "memory": memory_row,
    "step_time": step_time_row,
    "evaluation_time": evaluation_time_row,
    "average": average_row,
    "mfu": mfu_row,
    "cost": cost_row,
    "shards": shards_row,
    "enough_data": enough_data_row,
    "overlap": overlap_row,
    "disk": disk_row,
    "clock": clock_row,
    "driver": driver_row,
    "projected_score": projected_score_row,
}
assert ASKED.keys() == ROWS.keys()

Announce = Callable[[str], None]


@dataclass(frozen=True)
class PreflightReport:
    """All rows, with what was asked of which device. `strict` makes a risk forbid the run."""

    context: Context
    rows: tuple[Row, ...]
    elapsed_s: float
    strict: bool = False

    @property
    def go(self) -> bool:
        """Whether nothing forbids the run."""
        return not self.blocking

    @property
    def blocking(self) -> list[str]:
        """Rows that forbid the run."""
        return [row.name for row in self.rows if row.blocks(self.strict)]

    @property
    def risks(self) -> list[str]:
        """Rows that say risk and were not overridden, whether or not they forbid the run."""
        return [row.name for row in self.rows if row.verdict == "risk" and not row.forced]

    @property
    def forced(self) -> list[str]:
        """Rows that said no-go or risk and were overridden."""
        return [row.name for row in self.rows if row.forced]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows say what, by verdict."""
        return {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in VERDICTS}

    def to_document(self) -> dict[str, Any]:
        """The report as JSON."""
        question, facts = self.context.question, self.context.facts
        return {
            "name": question.spec.name,
            "spec_id": spec_id(question.spec),
            "spec": spec_to_dict(question.spec),
            "engine": question.engine,
            "ranks": question.ranks,
            "nodes": question.nodes,
            "device": facts.names[0],
            "framework": facts.framework,
            "go": self.go,
            "strict": self.strict,
            "risks": self.risks,
            "forced": self.forced,
            "counts": self.counts,
            "rows": [row.to_document() for row in self.rows],
            "elapsed_s": round(self.elapsed_s, 3),
        }


def run_preflight(
    question: Question, force: Iterable[str] = (), announce: Announce = lambda row: None, strict: bool = False
) -> PreflightReport:
    """Answer every row. `force` names rows whose no-go or risk counts as go; `strict` makes other risks forbid the
    run; `announce` is called with what is being done.

    Raises UserError for an unknown row to force, or a batch that the ranks cannot share.
    """
    forced = set(force)
    check_row_names(forced)
    started = time.monotonic()
    context = prepare(question, announce)
    rows = []
    for name, ask in ASKED.items():
        announce(name)
        row = _asked(name, ask, context)
        rows.append(row.force() if name in forced else row)
    return PreflightReport(context, tuple(rows), time.monotonic() - started, strict)


def prepare(question: Question, announce: Announce = lambda row: None) -> Context:
    """Facts, estimate and, where it may fit, one measured step. Raises UserError."""
    spec = question.spec
    windows = spec.training.batch_symbols // spec.model.seq_len
    if question.nodes < 1:
        raise UserError(f"--nodes {question.nodes}: must be 1 or more")
    if question.ranks > MAX_RANKS:
        raise UserError(f"--ranks {question.ranks}: at most {MAX_RANKS} are allowed")
    if question.ranks < 1 or windows % question.ranks:
        raise UserError(
            f"--ranks {question.ranks}: must be a divisor of the {windows} windows in a batch "
            f"(training.batch_symbols / model.seq_len)"
        )
    if question.ranks % question.nodes:
        raise UserError(
            f"--nodes {question.nodes}: must be a divisor of the {question.ranks} ranks, because each node has as many"
        )
    facts = _facts_for_a_rank(question)
    spec = with_micro_batches(spec, question.engine, facts, question.ranks)
    question = replace(question, spec=spec)
    run_here = measured_spec(spec, facts)
    _, group_rows = rows_of_rank(run_here, question.ranks, facts.workers)
    memory = estimate_memory(run_here, question.engine, group_rows, facts.workers)
    workload = plan_workload(run_here, question.ranks, facts, memory)
    measured = run_here
    if workload.shortened:
        measured = resized(run_here, workload.measured_seq_len, workload.measured_rows)
    step = None
    if memory.least_bytes <= facts.free_bytes:
        announce("one training step")
        step = measure_step(measured, question.engine, workload.measured_rows, workload.passes)
    return Context(question, facts, workload, memory, step)


def _facts_for_a_rank(question: Question) -> DeviceFacts:
    """The facts of the device; of a CPU, which all ranks of its node share, with one rank's part of the free memory."""
    facts = engine_package(question.engine).device_facts()
    return facts if facts.kind == "gpu" else replace(facts, free_bytes=facts.free_bytes // question.ranks_per_node)


def preferred_engine() -> str:
    """The first installed engine that has a GPU here, else the first installed. Raises UserError if none is."""
    names = available_engines()
    if not names:
        raise UserError(f"preflight needs an engine and none is installed; install the extra {ENGINE_EXTRAS}")
    return next((name for name in names if engine_package(name).device_facts().kind == "gpu"), names[0])


def check_row_names(names: Iterable[str]) -> None:
    """Raise UserError naming the first unknown row."""
    for name in sorted(names):
        if name not in ROWS:
            raise UserError(f"--force {name}: no such row; rows: {', '.join(ROWS)}")


def _asked(name: str, ask: Callable[[Context], Row], context: Context) -> Row:
    """The row, or a no-go with the reason if the machine or the input fails on it."""
    try:
        return ask(context)
    except (UserError, RuntimeError, MemoryError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return no_go(name, "failed", f"{type(error).__name__}: {reason}")

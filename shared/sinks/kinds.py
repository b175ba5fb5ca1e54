"""The sinks, each over a package that is an extra. All write to this machine unless the user's environment says
otherwise (TRACKIO_SPACE_ID, WANDB_MODE=online)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from shared.runs.run_directory import RunDirectory

PROJECT = "bytetwin"
ARTIFACT_TYPE = "model"


class Sink(Protocol):
    """Anything that takes a run's numbers. Every method may raise anything.

    `package` is what it needs installed, by the name of its import and of the extra; None where it needs nothing.
    `shown_by` is the command that shows a run there, or uploads an offline one; {folder} stands for the run's.
    """

    package: ClassVar[str | None]
    shown_by: ClassVar[str]

    def __init__(self, run: RunDirectory, config: Mapping[str, Any], *, resumed: bool, group: str | None) -> None:
        """`config` is the resolved spec under `spec` and environment.json under `environment`; `group` names the runs
        that belong together, those of a sweep."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name after so many optimizer steps."""

    def end(self, artifact: Path | None) -> None:
        """This start of the run is over; `artifact` is its packed model, if it made one."""


class Trackio:
    """Local by default: in TRACKIO_DIR, shown by `trackio show`."""

    package: ClassVar[str | None] = "trackio"
    shown_by: ClassVar[str] = f"trackio show --project {PROJECT}"

    def __init__(self, run: RunDirectory, config: Mapping[str, Any], *, resumed: bool, group: str | None) -> None:
        import trackio

        with _silence():
            self._run = trackio.init(
                project=PROJECT,
                name=run.name,
                group=group,
                config=dict(config),
                resume="allow" if resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def end(self, artifact: Path | None) -> None:
        import trackio

        with _silence():
            if artifact is not None:
                trackio.log_artifact(artifact, name=self._run.name, type=ARTIFACT_TYPE)
            self._run.finish()


class Wandb:
    """Offline by default: `wandb sync RUN/wandb/offline-*` uploads all starts as one run; WANDB_MODE=online does so at
    once."""

    package: ClassVar[str | None] = "wandb"
    shown_by: ClassVar[str] = "wandb sync {folder}/wandb/offline-*"

    def __init__(self, run: RunDirectory, config: Mapping[str, Any], *, resumed: bool, group: str | None) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            # Every start of the run is the same run of W&B: the first makes it, the others continue it.
            id=_same_id(run, config["environment"]),
            resume="allow",
            group=group,
            dir=str(run.path),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # After a resume steps come again, which W&B's own counter would refuse.
        self._run.define_metric("*", step_metric="steps")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "steps": step})

    def end(self, artifact: Path | None) -> None:
        if artifact is not None:
            packed = self._wandb.Artifact(self._run.name or PROJECT, type=ARTIFACT_TYPE)
            packed.add_file(str(artifact))
            self._run.log_artifact(packed)
        self._run.finish()


class TensorBoard:
    """Event files in RUN/tensorboard. They hold float32 and no artifact; a group is the folder that holds the runs."""

    package: ClassVar[str | None] = "tensorboard"
    shown_by: ClassVar[str] = "tensorboard --logdir {folder}/tensorboard"

    def __init__(self, run: RunDirectory, config: Mapping[str, Any], *, resumed: bool, group: str | None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(run.path / "tensorboard"))
        for name, values in config.items():
            shown = "```json\n" + json.dumps(values, indent=2) + "\n```"
            self._writer.add_event(self._event(wall_time=time.time(), step=0, summary=text_pb(name, shown)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=one) for tag, one in values.items()])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def end(self, artifact: Path | None) -> None:
        self._writer.close()


# By the name on the command line.
KINDS: dict[str, type[Sink]] = {"trackio": Trackio, "wandb": Wandb, "tensorboard": TensorBoard}


def _same_id(run: RunDirectory, environment: Mapping[str, Any]) -> str:
    """An id that all starts of a run have and no other run has, from its name and the time and command of its first
    start: nothing is kept that `wandb clean` could remove."""
    first = [*environment.get("earlier_starts", []), environment][0]
    text = json.dumps([run.name, first.get("started"), first.get("command")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """stdout belongs to the document of the command."""
    return contextlib.redirect_stdout(io.StringIO())


def shown_by(kind: str, run: RunDirectory) -> str:
    """The command line that shows a run in a sink of this kind."""
    return KINDS[kind].shown_by.format(folder=shlex.quote(str(run.path)))

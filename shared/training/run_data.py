"""Is the data here what a run was trained on, and is any of that in the text that is scored?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from data.stream import SymbolStream, TrainingText
from shared.artifact.calibration import CALIBRATION_KEY, LOGITS_KEY, CalibrationRecord
from shared.engine.microbatch import with_symbols
from shared.errors import ArtifactError, DataError, RunError
from shared.runs.finished_run import FinishedRun, read_finished
from shared.runs.run_directory import RunDirectory
from shared.runs.target import Target
from shared.scoring.calibration_check import check_calibration
from shared.scoring.checks import Check
from shared.scoring.overlap import check_overlap, overlap_unknown
from shared.spec import Spec
from shared.training.calibration import calibration_windows, is_calibrated, logit_windows
from shared.training.sources import open_training_text
from shared.views.report import write_report

NAME = "run_data"
# Windows of a training text by the settings of a spec.
Windows = Callable[[Spec, TrainingText], np.ndarray]


def check_target_data(target: Target, heldout: SymbolStream) -> list[Check]:
    """The overlap of a held-out text with the text that the target was trained on; before it, a warning where a run was
    trained on other data than there is now under the names in its spec; after it, of an artifact that needed one, its
    calibration."""
    return [*_training_checks(target, heldout), *_calibration_checks(target, heldout)]


def _calibration_checks(target: Target, heldout: SymbolStream) -> list[Check]:
    """The checks of the texts that an artifact was calibrated and its logits were fitted on, whose windows are taken
    again if they are there."""
    spec = target.spec
    if target.weights_name != "packed":
        return []
    checks = []
    if target.calibration is not None or is_calibrated(spec):
        again = calibration_windows if spec.artifact.calibration.source == "train" else None
        checks.append(_record_check(CALIBRATION_KEY, target.calibration, spec, heldout, again))
    if target.logits is not None or spec.artifact.logits != "none":
        checks.append(_record_check(LOGITS_KEY, target.logits, spec, heldout, logit_windows))
    return checks


def _record_check(
    name: str, record: CalibrationRecord | None, spec: Spec, heldout: SymbolStream, again: Windows | None
) -> Check:
    windows = None
    if record is not None and record.source == "train" and again is not None:
        try:
            text = open_training_text(spec)
            windows = again(spec, text) if text.sha256 == record.text_sha256 else None
        except DataError:
            pass
    return check_calibration(record, heldout, windows, name)


def _training_checks(target: Target, heldout: SymbolStream) -> list[Check]:
    if target.run is None:
        check = overlap_with_training(target.spec, heldout)
        if target.weights_name == "random":
            return [check]
        return [replace(check, detail=f"{check.detail}; an artifact names its training text without a hash of it")]
    recorded = _recorded_data(target.run)
    if not recorded:
        unknown = f"{target.run.environment_path} does not say what the run was trained on"
        return [_warning(unknown, 1), overlap_unknown(unknown)]
    training_change = _training_change(target.spec, recorded["train"])
    changes = [change for change in (training_change, _heldout_change(heldout, recorded["heldout"])) if change]
    warnings = [_warning("; ".join(changes), len(changes))] if changes else []
    if training_change:
        return [*warnings, overlap_unknown("the text that the run was trained on is not there")]
    return [*warnings, overlap_with_training(target.spec, heldout)]


def overlap_with_training(spec: Spec, heldout: SymbolStream) -> Check:
    """The overlap of a text with what a spec is trained on."""
    try:
        training = open_training_text(spec)
    except DataError as error:
        return overlap_unknown(str(error))
    return check_overlap(heldout, training)


def finished_with(run: RunDirectory, spec: Spec) -> FinishedRun | None:
    """Read a run that has been trained, packed and scored with exactly this spec; None for any other. What a kill after
    that left out or left behind is put right.

    Raises RunError if the text that the spec names has changed since.
    """
    if not run.spec_path.is_file() or not run.score_path.exists():
        return None
    stored = run.read_spec()
    if stored != with_symbols(spec, stored.training.micro_batch_symbols):
        return None
    try:
        found = read_finished(run)
    except (RunError, ArtifactError):
        return None
    if "packing" not in found.ending:
        return None
    try:
        now = open_training_text(spec).sha256
    except DataError:
        # Without the text no run can be trained on anything else under this name.
        return _put_right(found)
    if now != found.train_text:
        raise RunError(
            f"{run.path} was trained on {spec.data.train} when its sha256 was {found.train_text[:16]}, now it is "
            f"{now[:16]}: train under another name, or remove {run.path} to train it again"
        )
    return _put_right(found)


def _put_right(found: FinishedRun) -> FinishedRun:
    """Write the report of a finished run again unless it is newer than all it shows; remove temporary files."""
    run = found.directory
    try:
        run.lock()
    except RunError:
        return found  # A process is at work in it.
    try:
        run.tidy()
        shows = max(path.stat().st_mtime_ns for path in (run.score_path, run.metrics_path))
        if not run.report_path.is_file() or run.report_path.stat().st_mtime_ns < shows:
            write_report(run)
    finally:
        run.unlock()
    return found


def _recorded_data(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """`name` and `sha256` of the training and held-out text from environment.json; {} if it does not have them."""
    try:
        data = run.read_environment()["data"]
        return {role: {key: str(data[role][key]) for key in ("name", "sha256")} for role in ("train", "heldout")}
    except (RunError, LookupError, TypeError):
        return {}


def _training_change(spec: Spec, recorded: dict[str, Any]) -> str:
    """How the training text differs from the run's, '' if it does not."""
    before = f"the run was trained on {recorded['name']} {recorded['sha256'][:16]}"
    try:
        now = open_training_text(spec)
    except DataError as error:
        return f"{before}, which cannot be opened ({error})"
    return (
        "" if now.sha256 == recorded["sha256"] else f"{before}; {now.name} is now a different text, {now.sha256[:16]}"
    )


def _heldout_change(heldout: SymbolStream, recorded: dict[str, Any]) -> str:
    """How the held-out text differs from the run's where it has the same name, '' if it does not."""
    if heldout.name != recorded["name"] or heldout.sha256 == recorded["sha256"]:
        return ""
    return (
        f"its held-out text was {heldout.name} {recorded['sha256'][:16]}, now a different text, {heldout.sha256[:16]}"
    )


def _warning(detail: str, differences: int) -> Check:
    """The data has changed: not a fault of the score, but a reader must know."""
    return Check(NAME, True, float(differences), 0.0, detail, warning=True)

"""The target of a command: a run, an artifact file or a spec, found from one word on the command line."""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data.datasets import bind_tokenizer
from shared.artifact import Artifact, read_artifact
from shared.artifact.calibration import CALIBRATION_KEY, LOGITS_KEY, CalibrationRecord
from shared.engine.state import split_state
from shared.errors import ArtifactError, RunError, UserError, nearest
from shared.model import model_weights, random_weights
from shared.ops import NumpyOps
from shared.optim import averaged_weights
from shared.runs.checkpoints import Checkpoint, CheckpointStore
from shared.runs.run_directory import RunDirectory
from shared.scoring.document import ChosenPart, WeightsName
from shared.spec import Spec, load_spec, preset_names, spec_id, stored_spec

RUNS = Path("runs")
# The key in the free part of an artifact's header that says that held-out text chose its weights.
CHOSEN_KEY = "chosen"


@dataclass(frozen=True)
class Target:
    """Float32 weights with their spec. `weights_name` says where they come from: an artifact, a checkpoint (averaged
    or as trained), or a random start. `artifact_bytes` and `artifact_sha256` are None except for an artifact, `run`
    except for a run, and `chosen` unless held-out text chose the weights. `calibration` and `logits` are
    what an artifact was calibrated and its logits were fitted on, as it says itself. `step` is that of a checkpoint;
    `warnings` say which damaged ones were passed over for it."""

    source: str
    spec: Spec
    weights: dict[str, np.ndarray]
    weights_name: WeightsName
    artifact_bytes: int | None
    run: RunDirectory | None = None
    artifact_sha256: str | None = None
    chosen: ChosenPart | None = None
    calibration: CalibrationRecord | None = None
    logits: CalibrationRecord | None = None
    step: int | None = None
    warnings: tuple[str, ...] = ()


def load_trained(
    source: str, weights_name: WeightsName | None = None, step: int | None = None, runs_dir: Path = RUNS
) -> Target:
    """A run (by name in `runs/` or by path) or an artifact file.

    `weights_name` None means the artifact, or for a run without one the average in its last checkpoint; `best` means
    the average in the checkpoint that was best on held-out text. `step` takes another checkpoint than the last one that
    is whole. Raises UserError if there is no such run or file, and RunError or ArtifactError if it is damaged.
    """
    if step is not None and weights_name in ("packed", "best"):
        raise UserError(
            f"--step {step} chooses a checkpoint, of averaged or trained weights, not of {weights_name} ones"
        )
    run = find_run(source, runs_dir)
    if run is not None:
        return _load_run(source, run, weights_name, step)
    if not Path(source).is_file():
        raise UserError(f"{_no_run(source, runs_dir)}, and no artifact file at that path")
    if step is not None:
        raise UserError(f"{source}: --step {step} chooses a checkpoint of a run, this is an artifact")
    if weights_name not in (None, "packed"):
        raise UserError(f"{source}: an artifact holds packed weights only, not {weights_name} ones")
    return _load_artifact(source, Path(source))


def load_audited(
    source: str,
    overrides: Sequence[str] = (),
    seed: int = 0,
    step: int | None = None,
    runs_dir: Path = RUNS,
) -> Target:
    """A run, an artifact file, or a spec (preset or .toml) with random weights, because fresh ones hide leaks.

    A run that has the name of a preset comes first, unless there are overrides, which only a spec takes.
    """
    is_preset = source in preset_names() and (bool(overrides) or not (runs_dir / source / "spec.toml").is_file())
    if source.endswith(".toml") or is_preset:
        if step is not None:
            raise UserError(f"{source}: --step {step} chooses a checkpoint of a run, this is a spec")
        spec = bind_tokenizer(load_spec(source, overrides))
        return Target(source, spec, random_weights(spec, seed), "random", None)
    if overrides:
        raise UserError(f"--set applies to a spec; {source} has its own")
    if find_run(source, runs_dir) is None and not Path(source).exists():
        presets = ", ".join(preset_names())
        hint = nearest(source, preset_names())
        raise UserError(f"{_no_run(source, runs_dir)}, no such artifact file or spec{hint}; presets: {presets}")
    return load_trained(source, step=step, runs_dir=runs_dir)


def find_run(source: str, runs_dir: Path = RUNS) -> RunDirectory | None:
    """The run, or folder of runs, at that path or of that name in `runs_dir`, None if there is none. A folder that is
    neither is taken only if there is nothing better: in a checkout `data` is one."""
    folders = [path for path in (Path(source), runs_dir / source) if _is_folder(path)]
    better = (path for path in folders if any(path.glob("spec.toml")) or any(path.glob("*/spec.toml")))
    path = next(better, folders[0] if folders else None)
    return RunDirectory(path) if path else None


def _is_folder(path: Path) -> bool:
    """Like Path.is_dir, but an OSError for what it may not look at, of which Python 3.14 says False too."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    except ValueError:  # a null character
        return False


def run_named(source: str, runs_dir: Path = RUNS) -> RunDirectory:
    """Like `find_run`, but raises UserError if there is none."""
    run = find_run(source, runs_dir)
    if run is None:
        if Path(source).is_file():
            beside = RunDirectory(Path(source).parent)
            hint = f", did you mean the run {beside.path}?" if beside.spec_path.is_file() else ""
            raise UserError(f"{source} is a file, a run is a folder{hint}")
        raise UserError(f"{_no_run(source, runs_dir)}, and no such folder")
    return run


def runs_in(folder: RunDirectory) -> list[RunDirectory]:
    """The runs in a folder of runs, finished or not, in order of name."""
    return [RunDirectory(path) for path in sorted(folder.path.iterdir()) if (path / "spec.toml").is_file()]


def find_runs(sources: Sequence[str], runs_dir: Path = RUNS) -> list[RunDirectory]:
    """The runs that the words of a command line name, finished or not, each once: by name or path, or all in a folder.
    Raises UserError for a word that names none."""
    found: dict[Path, RunDirectory] = {}
    for source in sources:
        run = run_named(source, runs_dir)
        runs = [run] if run.spec_path.is_file() else runs_in(run)
        if not runs:
            raise UserError(f"{run.path}: neither a run nor a folder of runs")
        for each in runs:
            found.setdefault(each.path.resolve(), each)
    return list(found.values())


def _no_run(source: str, runs_dir: Path) -> str:
    names = [path.parent.name for path in runs_dir.glob("*/spec.toml")]
    return f"no run named {source!r} in {runs_dir}/{nearest(source, names)}"


def refuse_run_artifact(path: Path, what: str) -> None:
    """Raise UserError if `path` is the artifact of a run, to which its score, records and comparisons belong."""
    run = RunDirectory(path.resolve().parent)
    if path.resolve() == run.artifact_path and run.spec_path.is_file():
        raise UserError(f"{path} is the artifact of run {path.parent}: {what} needs --output with another file")


def _load_run(source: str, run: RunDirectory, weights_name: WeightsName | None, step: int | None) -> Target:
    spec = run.read_spec()
    if weights_name == "packed" or (weights_name is None and step is None and run.artifact_path.exists()):
        target = _load_artifact(source, run.artifact_path)
        if spec_id(target.spec) != spec_id(spec):
            raise RunError(f"{run.artifact_path}: made for spec {spec_id(target.spec)}, the run is {spec_id(spec)}")
        return replace(target, run=run)
    checkpoint = _checkpoint(run, spec, step, best=weights_name == "best")
    stored = stored_spec(checkpoint.info.spec, origin=str(checkpoint.path))
    if spec_id(stored) != spec_id(spec):
        raise RunError(f"{checkpoint.path}: made for spec {spec_id(stored)}, the run is {spec_id(spec)}")
    trained, state = split_state(stored, checkpoint.state)
    taken = checkpoint.info.step
    warnings = tuple(f"{warning}; the weights are those of step {taken}" for warning in checkpoint.warnings)
    if weights_name == "trained":
        return Target(source, spec, model_weights(stored, trained), "trained", None, run, step=taken, warnings=warnings)
    # Large numbers of which only the mean is too large.
    with np.errstate(over="ignore", invalid="ignore"):
        average = model_weights(stored, averaged_weights(NumpyOps(), stored.training, trained, state))
    odd = next((name for name, value in average.items() if not np.isfinite(value).all()), None)
    if odd is not None:
        raise RunError(f"{checkpoint.path}: the average of {odd} is not finite")
    if weights_name != "best":
        return Target(source, spec, average, "averaged", None, run, step=taken, warnings=warnings)
    validation = checkpoint.info.last_validation
    assert validation is not None
    chosen = ChosenPart(step=taken, bpb=validation.bpb, dataset=spec.data.heldout)
    return Target(source, spec, average, "best", None, run, chosen=chosen, step=taken, warnings=warnings)


def _checkpoint(run: RunDirectory, spec: Spec, step: int | None, *, best: bool) -> Checkpoint:
    """The last checkpoint, that of a step, or the one that was best on held-out text. Raises RunError where there is
    none."""
    checkpoint = None
    if run.checkpoints_path.is_dir():
        store = CheckpointStore(run.checkpoints_path, spec.training.keep_checkpoints)
        if step is not None:
            return store.load_step(step)
        checkpoint = store.load_best() if best else store.load_latest()
        if checkpoint is None and store.steps():
            raise RunError(f"{run.path}: none of its checkpoints was validated as its spec asks, so none is the best")
    if checkpoint is None:
        raise RunError(f"{run.path}: it has neither {run.artifact_path.name} nor a checkpoint yet")
    return checkpoint


def _load_artifact(source: str, path: Path) -> Target:
    artifact = read_artifact(path)
    info = artifact.info
    return Target(
        source,
        artifact.spec,
        dict(artifact.weights),
        "packed",
        info.artifact_bytes,
        artifact_sha256=info.sha256,
        chosen=_chosen(artifact, path),
        calibration=_calibration(artifact, path, CALIBRATION_KEY),
        logits=_calibration(artifact, path, LOGITS_KEY),
    )


def _chosen(artifact: Artifact, path: Path) -> ChosenPart | None:
    """How `bytetwin pack --weights best` chose the weights; None for other artifacts."""
    values = artifact.header["extra"].get(CHOSEN_KEY)
    try:
        return None if values is None else ChosenPart.model_validate(values)
    except ValidationError:
        raise ArtifactError(f"{path}: header: extra.{CHOSEN_KEY} must be a step, its bpb and a dataset") from None


def _calibration(artifact: Artifact, path: Path, key: str) -> CalibrationRecord | None:
    """What the artifact was calibrated on, or its logits fitted; None if it does not say."""
    values = artifact.header["extra"].get(key)
    try:
        return None if values is None else CalibrationRecord.model_validate(values)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the whole"
        raise ArtifactError(f"{path}: header: extra.{key}: {where} is not that of a calibration") from None

"""The regression behind shared/artifact/predict_calibration.py, over the models of artifact_prediction.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared.artifact.predict import predict_artifact_bytes
from shared.artifact.predict_model import FEATURES, Calibration, role_features, role_of
from shared.files import write_atomically
from shared.model.manifest import Parameter, parameter_manifest
from shared.quantisers import quantiser
from shared.spec import Spec, stored_spec, with_overrides
from tests import ROOT

CALIBRATION = ROOT / "shared" / "artifact" / "predict_calibration.py"

Row = Mapping[str, Any]

# Pull of a role's slopes towards those of its class, and of these towards 0, in models.
RIDGE = 1.0

# The stated error is what this share of the models stays within when left out of the fit.
ERROR_QUANTILE = 0.95


@dataclass(frozen=True)
class Role:
    """What the codes of one role cost in one model: `excess_bits` per weight over Gaussian codes."""

    name: str
    group: str
    count: int
    features: np.ndarray
    excess_bits: float


def roles_of(spec: Spec) -> dict[str, list[Parameter]]:
    """Quantised parameters by role."""
    groups: dict[str, list[Parameter]] = {}
    for parameter in parameter_manifest(spec):
        if len(parameter.shape) >= 2 and parameter.quantisation != "control":
            groups.setdefault(role_of(parameter, spec), []).append(parameter)
    return groups


def _observations(row: Row) -> Iterator[Role]:
    spec = stored_spec(row["spec"], origin=row["name"])
    for name, parameters in roles_of(spec).items():
        features = role_features(spec, parameters[0], row["steps"])
        count = sum(parameter.count for parameter in parameters)
        yield Role(name, parameters[0].quantisation, count, features, row["excess_bits"][name])


def fitted(rows: Sequence[Row]) -> Calibration:
    """The calibration of all rows that may be fitted, with its leave-one-out error."""
    rows = [row for row in rows if not row["name"].startswith("v-")]
    whole = fit(rows)
    errors = []
    for left_out in rows:
        rest = fit([row for row in rows if row is not left_out])
        if left_out["excess_bits"].keys() <= rest.roles.keys():
            errors += [abs(error) for error in prediction_errors(left_out, rest).values()]
    error_frac = float(np.quantile(errors, ERROR_QUANTILE))
    return replace(whole, error_frac=error_frac)


def fit(rows: Sequence[Row]) -> Calibration:
    """Ridge regression per role, its slopes drawn towards those of all roles of its class."""
    by_role: dict[str, list[Role]] = {}
    for row in rows:
        for role in _observations(row):
            by_role.setdefault(role.name, []).append(role)
    roles = {}
    for group in sorted({observed[0].group for observed in by_role.values()}):
        members = {name: observed for name, observed in by_role.items() if observed[0].group == group}
        centred = [
            (_x(observed) - _x(observed).mean(0), _y(observed) - _y(observed).mean()) for observed in members.values()
        ]
        pooled = _ridge(np.concatenate([x for x, _ in centred]), np.concatenate([y for _, y in centred]), RIDGE)
        for name, observed in members.items():
            x = np.column_stack([np.ones(len(observed)), _x(observed)])
            rest = _y(observed) - _x(observed) @ pooled
            line = _ridge(x, rest, np.array([1e-3] + [RIDGE] * len(FEATURES)))
            roles[name] = tuple(float(value) for value in line + np.concatenate([[0.0], pooled]))
    features = np.concatenate([_x(observed) for observed in by_role.values() if observed[0].group == "matrix"])
    ranges = tuple((float(low), float(high)) for low, high in zip(features.min(0), features.max(0), strict=True))
    return Calibration(
        roles, ranges, _codec_ratio(rows), _frac(rows, ".scales"), _frac(rows, "raw.values"), 0.0, len(rows)
    )


def _x(observed: list[Role]) -> np.ndarray:
    return np.array([role.features for role in observed])


def _y(observed: list[Role]) -> np.ndarray:
    return np.array([role.excess_bits for role in observed])


def _ridge(x: np.ndarray, y: np.ndarray, pull: float | np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + np.diag(np.broadcast_to(pull, x.shape[1])), x.T @ y)


def _codec_ratio(rows: Sequence[Row]) -> tuple[float, float]:
    """Line of brotli's size over the sum of entropies against the mean excess, over models."""
    points = []
    for row in rows:
        spec = stored_spec(row["spec"], origin=row["name"])
        excess = entropy = count = 0.0
        coded = quantiser(spec.artifact.matrix)
        for role in (role for role in _observations(row) if role.group == "matrix"):
            shape = roles_of(spec)[role.name][0].shape
            excess += role.count * role.excess_bits
            entropy += role.count * (role.excess_bits + coded.gaussian_code_bits(shape[-1]))
            count += role.count
        points.append((excess / count, 8 * row["sections"]["matrix.codes"][1] / entropy))
    excesses, ratios = np.array(points).T
    slope, intercept = np.polyfit(excesses, ratios, 1)
    return float(intercept), float(slope)


def _frac(rows: Sequence[Row], ending: str) -> float:
    """Mean over models of stored over raw bytes of the sections with this ending."""
    sizes = [[size for name, size in row["sections"].items() if name.endswith(ending)] for row in rows]
    return float(np.mean([np.sum(pairs, 0)[1] / np.sum(pairs, 0)[0] for pairs in sizes]))


def prediction_errors(row: Row, calibration: Calibration) -> dict[str, float]:
    """Predicted over packed size minus one, by matrix bits."""
    spec = stored_spec(row["spec"], origin=row["name"])
    return {
        bits: predict_artifact_bytes(
            with_overrides(spec, [f"artifact.matrix.bits={bits}"]), row["steps"], calibration
        ).expected_bytes
        / packed
        - 1
        for bits, packed in row["artifact_bytes"].items()
    }


def write_calibration(calibration: Calibration) -> None:
    """The calibration as a Python module, rounded to what the measurement can tell."""
    roles = "".join(
        f'        "{name}": ({", ".join(f"{value:.4f}" for value in line)}),\n'
        for name, line in sorted(calibration.roles.items())
    )
    ranges = "".join(f"        ({low:.4f}, {high:.4f}),\n" for low, high in calibration.ranges)
    text = f'''"""Fitted figures of shared.artifact.predict, written by tests/bench/artifact_prediction.py."""

from shared.artifact.predict_model import Calibration

CALIBRATION = Calibration(
    roles={{
{roles}    }},
    ranges=(
{ranges}    ),
    codec_ratio=({calibration.codec_ratio[0]:.5f}, {calibration.codec_ratio[1]:.5f}),
    scale_frac={calibration.scale_frac:.4f},
    raw_frac={calibration.raw_frac:.4f},
    error_frac={calibration.error_frac:.4f},
    num_models={calibration.num_models},
)
'''
    write_atomically(CALIBRATION, text.encode("ascii"))

"""Temperature and bias of the logits: one function everywhere, a fit that finds what was planted, and an artifact that
says on what text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.datasets import open_split
from shared.artifact import assemble, pack_bytes, unpack_bytes
from shared.artifact.container import quantise_model
from shared.artifact.logit_fit import BIAS_STEP, TEMPERATURE_STEP, fit_logits
from shared.engine.oracle import Oracle
from shared.engine.package import available_engines, create_scorer
from shared.errors import ArtifactError
from shared.model import parameter_counts, random_weights
from shared.model.logits import BIAS, TEMPERATURE
from shared.runs.target import load_trained
from shared.scoring.calibration_check import check_calibration
from shared.spec import Spec, load_spec, spec_id
from shared.tolerances import LOGITS_ABS
from shared.training.calibration import logit_windows
from shared.training.packing import pack_weights
from shared.training.run_data import check_target_data

SMALL = ("model.num_layers=1", "model.seq_len=48", "training.batch_symbols=480", "evaluation.batch_symbols=480")


def small_spec(*overrides: str) -> Spec:
    return load_spec("tiny", [*SMALL, "training.compile=false", "artifact.calibration.windows=40", *overrides])


def some_logits(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    bias = 0.5 * np.random.default_rng(seed).standard_normal(spec.vocabulary.size)
    return {TEMPERATURE: np.array([1.25], np.float32), BIAS: bias.astype(np.float32)}


@pytest.mark.parametrize("with_bias", [False, True])
def test_every_implementation_computes_the_definition(with_bias: bool) -> None:
    spec, x = small_spec(), np.random.default_rng(1).integers(0, 256, (2, 48)).astype(np.int32)
    weights = random_weights(spec, 0)
    logits = some_logits(spec) if with_bias else {TEMPERATURE: some_logits(spec)[TEMPERATURE]}
    scores = Oracle(spec, weights).log_probs(x) / 1.25 + logits.get(BIAS, 0.0)
    expected = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    for name in ("numpy", *available_engines()):
        scorer = create_scorer(name, spec, {**weights, **logits})
        np.testing.assert_allclose(scorer.log_probs(x), expected, atol=LOGITS_ABS)
        nats = -np.take_along_axis(expected, x[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(scorer.score(x), nats, atol=LOGITS_ABS)
        stepper = scorer.stepper(2)
        np.testing.assert_allclose(stepper.start(x[:, :30]), expected[:, 30], atol=LOGITS_ABS)
        for t in range(30, 34):
            np.testing.assert_allclose(stepper.advance(x[:, t]), expected[:, t + 1], atol=LOGITS_ABS)


@pytest.mark.slow
def test_the_fit_finds_what_was_planted() -> None:
    """Text drawn from a distribution other than the model's: its temperature and bias come back, to the noise of the
    sample, and rounded to the grid."""
    spec, rng = small_spec("artifact.logits=temperature_bias"), np.random.default_rng(3)
    base = rng.standard_normal((8, 256)) - 30.0 * (np.arange(256) >= 16)
    bias = np.where(np.arange(256) < 8, 0.3, -0.3)

    class Planted:
        """The symbol before says which of eight distributions comes."""

        def __init__(self) -> None:
            self.spec = spec

        def log_probs(self, x: np.ndarray) -> np.ndarray:
            rows = base[np.pad(x, ((0, 0), (1, 0)))[:, :-1] % 8]
            return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))

    windows = np.zeros((400, 96), np.int32)
    for t in range(96):
        true = base[windows[:, t - 1] % 8 if t else 0 * windows[:, 0]] / 1.5 + bias
        windows[:, t] = np.argmax(true + rng.gumbel(size=true.shape), axis=1)
    fitted = fit_logits(Planted(), windows)  # type: ignore[arg-type]
    assert fitted[TEMPERATURE].dtype == fitted[BIAS].dtype == np.float32
    assert abs(fitted[TEMPERATURE][0] - 1.5) < 0.05
    centred = fitted[BIAS][:16] - fitted[BIAS][:16].mean()
    assert np.abs(centred - bias[:16]).max() < 0.12
    assert not (fitted[BIAS] % BIAS_STEP).any() and not (fitted[TEMPERATURE] % TEMPERATURE_STEP).any()
    # A symbol that is hardly seen keeps its probability.
    assert np.abs(fitted[BIAS][16:]).max() < 0.3


def test_without_logits_nothing_changes() -> None:
    plain, weights = small_spec(), random_weights(small_spec(), 0)
    fitted = small_spec("artifact.logits=temperature_bias")
    assert spec_id(plain) == spec_id(fitted) and parameter_counts(plain) == parameter_counts(fitted)
    assert TEMPERATURE not in unpack_bytes(pack_bytes(plain, weights)).weights
    with pytest.raises(ArtifactError, match=r"logits\.temperature: not a parameter of the spec"):
        pack_bytes(plain, {**weights, **some_logits(plain)})
    # Before a fit they are there and change nothing.
    neutral = unpack_bytes(pack_bytes(fitted, weights)).weights
    assert neutral[TEMPERATURE].tolist() == [1.0] and not neutral[BIAS].any()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        (TEMPERATURE, 0.2, "0.25 to 4"),
        (TEMPERATURE, -1.0, "0.25 to 4"),
        (BIAS, -4.1, "-4 to 4"),
        (BIAS, 1e30, "-4 to 4"),
    ],
)
def test_logits_that_no_fit_gives_are_neither_written_nor_read(name: str, value: float, allowed: str) -> None:
    """With them a log-probability could be infinite: e^x of every symbol can be 0."""
    spec = small_spec("artifact.logits=temperature_bias")
    weights = {**random_weights(spec, 0), **some_logits(spec)}
    refused = pytest.raises(
        ArtifactError, match=f"tensor {name}: {re.escape(f'{value:g} to {value:g}')}, must be {allowed}"
    )
    wild = {**weights, name: np.full_like(weights[name], value)}
    with refused:
        pack_bytes(spec, wild)
    tensors = quantise_model(spec, weights)
    tensors[name] = replace(tensors[name], parts={"values": wild[name]})
    content, _ = assemble(spec, tensors)
    with refused:
        unpack_bytes(content)


@pytest.mark.parametrize("form", ["temperature", "temperature_bias"])
def test_an_artifact_keeps_and_names_its_fit(form: str, tmp_path: Path) -> None:
    spec = small_spec(f"artifact.logits={form}", "artifact.calibration.source=none")
    path, weights = tmp_path / "fitted.btw", random_weights(spec, 0)
    info, fit = pack_weights(path, spec, weights, None, lambda packed: Oracle(spec, packed))
    target = load_trained(str(path))
    assert fit is not None and target.logits == fit.record and fit.windows.shape == (40, 48)
    text, heldout = open_split("builtin", "train", spec.vocabulary), open_split("builtin", "heldout", spec.vocabulary)
    assert fit.record.text_sha256 == text.sha256 and np.array_equal(fit.windows, logit_windows(spec, text))
    assert (BIAS in target.weights) == (form == "temperature_bias")
    # Random weights are too sure of themselves, and the fit is of the packed ones.
    without = {name: value for name, value in target.weights.items() if name not in (TEMPERATURE, BIAS)}
    before, after = (Oracle(spec, each).score(fit.windows).mean() for each in (without, target.weights))
    assert target.weights[TEMPERATURE][0] > 1.0 and after < before - 0.05
    neutral = len(pack_bytes(spec, weights, fit.extra()))
    # Digits of hashes in the header compress differently, by some ten bytes.
    assert info.artifact_bytes - neutral < (300 if form == "temperature_bias" else 60)
    checks = {check.name: check for check in check_target_data(target, heldout)}
    assert checks["logits"].passed and "40 windows of 48 symbols" in checks["logits"].detail
    assert not check_calibration(fit.record, heldout, fit.windows + 1, "logits").passed
    assert not check_calibration(None, heldout, None, "logits").passed

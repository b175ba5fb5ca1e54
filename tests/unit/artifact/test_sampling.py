"""Windows that a model writes: what they would be symbol by symbol, and the same on every engine."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from shared.artifact import sampling
from shared.artifact.sampling import Writer
from shared.engine.oracle import Oracle
from shared.model import random_weights
from shared.spec import Spec, load_spec
from tests.implementations import OPS, every_implementation

LENGTH, COUNT, TEMPERATURE, SEED = 24, 3, 0.8, 5
BASE = ("model.num_layers=2", "model.seq_len=48", "training.batch_symbols=480", "evaluation.batch_symbols=96")
PLAIN = ("model.patch_size=1", "model.decoder.kind=linear")
FORMS = {
    "patches": (),
    "patches with a context": ("model.decoder.context=6",),
    "patches of a head each": ("model.decoder.kind=mlp",),
    "documents": ("vocabulary.kind=byte260", "model.attention.document_mask=true", "model.smear_gate=v1"),
    "symbols": PLAIN,
    "symbols after documents": (*PLAIN, "vocabulary.kind=byte260", "model.attention.document_mask=true"),
    "symbols through a decoder": ("model.patch_size=1", "model.decoder.kind=autoregressive", "model.decoder.context=3"),
    "angles by the window": (*PLAIN, "model.attention.ntk_positions=8"),
    "a recurrence": (*PLAIN, "model.mixers=['mamba2', 'attention']", "model.state_dim=4"),
}
every_form = pytest.mark.parametrize("form", list(FORMS))


def spec_of(form: str) -> Spec:
    return load_spec("tiny", [*BASE, *FORMS[form]])


def write(name: str, form: str, windows: range) -> np.ndarray:
    spec = spec_of(form)
    return Writer(OPS[name], spec, random_weights(spec, 0), TEMPERATURE).write(windows, LENGTH, SEED)


@cache
def one_by_one(form: str) -> np.ndarray:
    """The same windows drawn symbol by symbol, each after a pass over its whole window."""
    spec = spec_of(form)
    oracle, size, start = Oracle(spec, random_weights(spec, 0)), spec.vocabulary.size, spec.vocabulary.document_start
    x = np.zeros((COUNT, spec.model.seq_len), np.int32)
    for row in range(COUNT):
        bits = np.random.PCG64(np.random.SeedSequence((SEED, row)))
        for position in range(LENGTH):
            uniform = ((bits.random_raw(size) >> np.uint64(11)).astype(float) + 0.5) / 2**53
            if position == 0 and start is not None:
                x[row, 0] = start
                continue
            said = oracle.log_probs(x[row : row + 1])[0, position] / TEMPERATURE - np.log(-np.log(uniform))
            said[[symbol for symbol in range(spec.vocabulary.num_specials) if symbol != start]] = -np.inf
            x[row, position] = np.argmax(said)
    return x[:, :LENGTH]


@pytest.mark.slow
@every_form
@every_implementation
def test_every_engine_writes_what_the_oracle_would_symbol_by_symbol(name: str, form: str) -> None:
    np.testing.assert_array_equal(write(name, form, range(COUNT)), one_by_one(form))


@every_form
def test_a_window_does_not_depend_on_those_beside_it(form: str) -> None:
    apart = [write("torch", form, range(first, first + 1)) for first in range(COUNT)]
    np.testing.assert_array_equal(np.concatenate(apart), write("torch", form, range(COUNT)))
    assert len({window.tobytes() for window in apart}) == COUNT


def test_guesses_change_the_number_of_passes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec("tiny", [*BASE, *PLAIN, "model.logit_softcap=100.0", "model.tie_embeddings=false"])
    weights = random_weights(spec, 0)
    # A model that is nearly sure of the next symbol, so that guesses come true.
    weights["head.weight"] *= np.float32(40)
    passes, written = {}, {}
    for ahead in (1, sampling.AHEAD_SYMBOLS):
        monkeypatch.setattr(sampling, "AHEAD_SYMBOLS", ahead)
        writer, ends = Writer(OPS["torch"], spec, weights, TEMPERATURE), []
        written[ahead] = writer.write(range(4), 48, SEED, lambda done, total, ends=ends: ends.append((done, total)))
        passes[ahead] = len(ends)
        assert ends[-1] == (4 * 48, 4 * 48)
    assert passes[1] == 48 and passes[sampling.AHEAD_SYMBOLS] < 40
    np.testing.assert_array_equal(*written.values())


def test_noise_draws_from_the_distribution() -> None:
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    noise = sampling._Noise(3, 1, len(probs))
    drawn = np.array([np.argmax(np.log(probs) + noise.at(position, 1)[0]) for position in range(4000)])
    for symbol, prob in enumerate(probs):
        # Four standard deviations of a binomial share.
        assert abs(np.mean(drawn == symbol) - prob) < 4 * np.sqrt(prob * (1 - prob) / len(drawn))


def test_noise_of_a_position_is_the_same_however_far_one_looks_ahead() -> None:
    one, far = sampling._Noise(3, 1, 5), sampling._Noise(3, 1, 5)
    steps = np.stack([one.at(position, 1)[0] for position in range(12)])
    for position, count in ((0, 4), (0, 6), (3, 5), (7, 5)):
        np.testing.assert_array_equal(far.at(position, count)[:count], steps[position : position + count])

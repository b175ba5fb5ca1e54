"""Fills a budget: chooses how each tensor is stored so that the artifact ends just below a limit (docs/techniques.md
12.5).

The choice is made on curves of predicted bits and loss, then really encoded. What the coder made of it corrects the
curves and the overhead, until the size lands. The last bytes come from the step of a few tensors; where only widths can
be chosen, from selective pruning of a choice that is slightly too large.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shared.artifact.allocate import Choice, Options, allocate
from shared.artifact.container import assemble
from shared.artifact.curves import Curve, decoded
from shared.artifact.fill_model import Model, StoredTensor
from shared.artifact.quantise import quantise
from shared.artifact.sensitivity import Sensitivity, stored_error
from shared.errors import ArtifactError
from shared.model.logits import packed_parameters
from shared.quantisers import Float32
from shared.quantisers.pruning import Pruning
from shared.spec import QuantiserSpec

LANDING_BYTES = 2000
"""The artifact ends within this many bytes below the limit."""

AIM_BYTES = 700
"""What is aimed at below the limit."""

NEAR_FRAC = 0.003
"""So near the limit, as a share of it, only some tensors are changed: encoding all again may take minutes."""

MOST_OCTAVES = 0.25
"""How far the step of a tensor is moved for the last bytes."""

LEAST_OCTAVES = 0.001
"""A step that can be moved no further is at the end of its curve."""

MOST_ENCODINGS = 12

FIRST_OVERHEAD_FRAC = 0.01
"""What a coder takes beyond its estimate, before that is known."""

Sensitivities = Mapping[str, Sensitivity]


class DoesNotFitError(ArtifactError):
    """Even the coarsest choice is over the limit; `smallest_bytes` is its size."""

    def __init__(self, smallest_bytes: int) -> None:
        super().__init__(f"the coarsest choice of all settings takes {smallest_bytes:,} bytes")
        self.smallest_bytes = smallest_bytes


@dataclass(frozen=True)
class Filled:
    """A finished choice: the tensors whose storage was chosen by name, what each of them is predicted to cost in nats
    per symbol, and the artifact. `pruned_codes` were made 0 for the last bytes; `is_finest` where nothing finer could
    have been chosen."""

    stored: dict[str, StoredTensor]
    nats: dict[str, float]
    content: bytes
    pruned_codes: int = 0
    is_finest: bool = False

    @property
    def artifact_bytes(self) -> int:
        """The size of the artifact."""
        return len(self.content)

    @property
    def predicted_nats(self) -> float:
        """The sum over tensors: the predicted cost of the whole artifact as far as costs add up."""
        return sum(self.nats.values())


class Filler:
    """Searches the choice for a model and a limit. It keeps what encoding taught it, so that a second search, with
    better sensitivities, takes few encodings."""

    def __init__(
        self,
        model: Model,
        curves: Mapping[str, Sequence[Curve]],
        limit_bytes: int,
        extra: Mapping[str, object] | None = None,
        on_encoded: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`extra` is what the header will carry; `on_encoded` gets the size of every file that was made."""
        self.model, self.limit_bytes, self.extra, self.on_encoded = model, limit_bytes, extra, on_encoded
        self.curves = {name: list(each) for name, each in curves.items()}
        self.plain = quantise(
            {name: value for name, value in model.weights.items() if name not in curves},
            {name: Float32() for name in model.weights if name not in curves},
        )
        # What the file takes beyond the bits of the choices: header, float32 tensors, the excess of the coder.
        self.overhead_bytes = sum(4 * tensor.parts["values"].size for tensor in self.plain.values())
        self.overhead_bytes += int(FIRST_OVERHEAD_FRAC * limit_bytes)
        self.encodings = 0
        self._made: dict[str, StoredTensor] = {}

    def fill(self, sensitivities: Sensitivities, until_s: float = float("inf")) -> Filled:
        """The choice at these sensitivities. After `until_s` of time.monotonic the largest so far that fits is taken.

        Raises DoesNotFitError if even the coarsest choice does not.
        """
        if (finest := self._finest(sensitivities)) is not None:
            return finest
        best: Filled | None = None
        choices: dict[str, Choice] = {}
        size = too_large = 0
        for _ in range(MOST_ENCODINGS):
            # What is over the limit again and again is aimed lower.
            margin = AIM_BYTES << max(0, too_large - 1)
            gap = self.limit_bytes - margin - size
            near = bool(choices) and abs(gap) <= NEAR_FRAC * self.limit_bytes
            tried = (self._moved(choices, gap) if near else None) or self._allocated(sensitivities, margin)
            if _settings(tried) == _settings(choices):
                if best is not None or not choices:
                    break
                too_large += 1
                continue
            choices = tried
            found = self._encoded(choices, sensitivities)
            size = found.artifact_bytes
            too_large = too_large + 1 if size > self.limit_bytes else 0
            if not too_large and (best is None or size > best.artifact_bytes):
                best = found
            if best is not None and (self._lands(best) or time.monotonic() > until_s):
                return best
        if best is None:
            choices = self._coarsest(sensitivities)
            best = self._encoded(choices, sensitivities)
            if best.artifact_bytes > self.limit_bytes:
                raise DoesNotFitError(best.artifact_bytes)
        return self._pruned(choices, best, sensitivities)

    def _lands(self, found: Filled) -> bool:
        return self.limit_bytes - LANDING_BYTES <= found.artifact_bytes <= self.limit_bytes

    def _finest(self, sensitivities: Sensitivities) -> Filled | None:
        """The finest choice of all settings, if it fits."""
        finest = {}
        for name, curves in self.curves.items():
            index = min(range(len(curves)), key=lambda each: float(curves[each].errors[0]))
            value, bits = float(curves[index].values[0]), float(curves[index].bits[0])
            finest[name] = Choice(curves[index].settings(value), index, value, bits, 0.0)
        if sum(choice.bits for choice in finest.values()) / 8 > self.limit_bytes:
            return None
        found = self._encoded(finest, sensitivities)
        return replace(found, is_finest=True) if found.artifact_bytes <= self.limit_bytes else None

    def _allocated(self, sensitivities: Sensitivities, margin: int) -> dict[str, Choice]:
        return allocate(self._options(sensitivities), 8.0 * (self.limit_bytes - margin - self.overhead_bytes))

    def _coarsest(self, sensitivities: Sensitivities) -> dict[str, Choice]:
        return allocate(self._options(sensitivities), 0.0)

    def _options(self, sensitivities: Sensitivities) -> dict[str, Options]:
        return {name: Options(curves, sensitivities[name].predicted_nats(1.0)) for name, curves in self.curves.items()}

    def _moved(self, choices: Mapping[str, Choice], gap: float) -> dict[str, Choice] | None:
        """The choices with the steps of as few tensors as needed moved to close a gap in bytes, the smallest first that
        can close it alone; None if steps cannot."""
        wanted, moved = 8.0 * gap, dict(choices)
        slopes, reach = {}, {}
        for name, choice in choices.items():
            curve = self.curves[name][choice.curve]
            coarser, finer = curve.values.max() / choice.value, choice.value / curve.values.min()
            octaves = min(MOST_OCTAVES, float(np.log2(coarser if wanted < 0.0 else finer)))
            if curve.is_smooth and octaves > LEAST_OCTAVES:
                slopes[name] = (curve.at(choice.value / 1.1)[0] - curve.at(choice.value * 1.1)[0]) / np.log2(1.21)
                reach[name] = octaves
        alone = [name for name, slope in slopes.items() if slope * reach[name] >= abs(wanted)]
        for name in sorted(alone or slopes, key=lambda name: slopes[name], reverse=not alone):
            if slopes[name] <= 0.0 or wanted == 0.0:
                break
            octaves = float(np.clip(wanted / slopes[name], -reach[name], reach[name]))
            choice = choices[name]
            value = choice.value * 2.0**-octaves
            moved[name] = replace(choice, settings=self.curves[name][choice.curve].settings(value), value=value)
            wanted -= slopes[name] * octaves
            if alone:
                break
        return moved if moved != choices else None

    def _encoded(self, choices: Mapping[str, Choice], sensitivities: Sensitivities) -> Filled:
        """The choices as a file; curves and overhead are put right by it."""
        for name, choice in choices.items():
            if name not in self._made or self._made[name].settings != choice.settings:
                self._made[name] = self.model.stored(name, choice.settings)
                made, curves = self._made[name], self.curves[name]
                curves[choice.curve] = curves[choice.curve].corrected(choice.value, made.bits, made.error)
        return self._assembled({name: self._made[name] for name in choices}, sensitivities)

    def _assembled(self, stored: Mapping[str, StoredTensor], sensitivities: Sensitivities) -> Filled:
        everything = self.plain | {name: made.tensor for name, made in stored.items()}
        in_order = {each.name: everything[each.name] for each in packed_parameters(self.model.spec)}
        content = assemble(self.model.spec, in_order, self.extra, self.model.coding)[0]
        self.encodings += 1
        self.on_encoded(len(content))
        self.overhead_bytes = len(content) - int(sum(made.bits for made in stored.values()) / 8)
        nats = {name: sensitivities[name].predicted_nats(made.error) for name, made in stored.items()}
        return Filled(dict(stored), nats, content)

    def _pruned(self, choices: Mapping[str, Choice], best: Filled, sensitivities: Sensitivities) -> Filled:
        """The smallest choice that is larger than `best` by more than the gap, its least important codes of 1 and -1
        made 0 until it lands; `best` if that does not land."""
        larger = self._larger(choices, sensitivities)
        if larger is None:
            return best
        found = self._encoded(larger, sensitivities)
        importance = {
            name: found.nats[name] / squared
            for name, made in found.stored.items()
            if (squared := stored_error(self.model.weights[name], decoded(made.tensor))) > 0.0
        }
        pruning = Pruning({name: made.tensor for name, made in found.stored.items()}, importance)
        count, sizes = 0, {0: found.artifact_bytes}
        saved_bytes = 0.2  # by a code, until it is known
        for _ in range(MOST_ENCODINGS):
            aim = self.limit_bytes - AIM_BYTES
            count = int(np.clip(count + (sizes[count] - aim) / saved_bytes, 1, pruning.count))
            if count in sizes:
                break
            tensors = pruning.pruned(count)
            stored = {
                name: self.model.measured(name, made.settings, tensors[name]) for name, made in found.stored.items()
            }
            pruned = self._assembled(stored, sensitivities)
            sizes[count] = pruned.artifact_bytes
            saved_bytes = max((sizes[0] - sizes[count]) / count, 0.01)
            if self._lands(pruned):
                return replace(pruned, pruned_codes=count)
        return best

    def _larger(self, choices: Mapping[str, Choice], sensitivities: Sensitivities) -> dict[str, Choice] | None:
        """The choices with one tensor stored in more bits, the fewest that lead over the limit."""
        gap = 8.0 * (self.limit_bytes - self.overhead_bytes) - sum(self._made[name].bits for name in choices)
        found: tuple[float, str, Choice] | None = None
        for name, curves in self.curves.items():
            options = Options(curves, sensitivities[name].predicted_nats(1.0))
            more = options.bits - self._made[name].bits
            for index in np.flatnonzero(more > max(gap, 0.0)).tolist():
                if found is None or more[index] < found[0]:
                    found = float(more[index]), name, options.choice(index)
        return None if found is None else {**choices, found[1]: found[2]}


def _settings(choices: Mapping[str, Choice]) -> dict[str, QuantiserSpec]:
    return {name: choice.settings for name, choice in choices.items()}

"""The virtual order of the trunk's layers, and where U-Net skips leave and enter (docs/techniques.md 6.1, 6.2).

Everything that repeats or pairs layers is decided here: the manifest counts skips from it, the trunk walks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shared.spec import ModelSpec


@dataclass(frozen=True)
class LayerStep:
    """One layer of the virtual order. `extra_pass` is 0 in a first pass and outside the loop, else 1, 2, ..

    `skip` is the number of the skip that enters before it: the latest output that was kept and has not entered
    yet. `keeps_output` says whether its own output is kept for a later step.
    """

    layer: int
    extra_pass: int = 0
    skip: int | None = None
    keeps_output: bool = False


def layer_order(model: ModelSpec) -> tuple[LayerStep, ...]:
    """The steps of one forward pass. Kept outputs enter last in, first out."""
    visits = list(_visits(model))
    before, after = _encoder_and_decoder(model, len(visits))
    num_skips = min(before, len(visits) - after) if model.unet_skips else 0
    steps = []
    for index, (layer, extra_pass) in enumerate(visits):
        number = index - after
        steps.append(
            LayerStep(
                layer,
                extra_pass,
                skip=number if 0 <= number < num_skips else None,
                # The first ones would never enter where the encoder is longer than the decoder.
                keeps_output=before - num_skips <= index < before,
            )
        )
    return tuple(steps)


def num_skips(model: ModelSpec) -> int:
    """U-Net skips, each with weights of its own."""
    return sum(step.skip is not None for step in layer_order(model))


def _visits(model: ModelSpec) -> Iterator[tuple[int, int]]:
    """(layer, extra pass) in order."""
    loop = model.loop
    for layer in range(model.num_layers):
        yield layer, 0
        if loop.extra_loops and layer == loop.last_layer:
            for extra_pass in range(1, loop.extra_loops + 1):
                yield from ((looped, extra_pass) for looped in range(loop.first_layer, loop.last_layer + 1))


def _encoder_and_decoder(model: ModelSpec, count: int) -> tuple[int, int]:
    """(steps of the encoder, which come first; first step of the decoder, to which all later ones belong)."""
    loop = model.loop
    if loop.skips == "outside":
        return loop.first_layer, count - (model.num_layers - 1 - loop.last_layer)
    return count // 2, count // 2

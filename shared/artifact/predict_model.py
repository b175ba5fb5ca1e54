"""The bits of a trained weight: those of the Gaussian code, and the effect of training (docs/techniques.md 11.4).

A row of C Gaussian weights scaled by its own maximum has codes whose entropy depends on C and the bit width
alone. Trained rows differ from it by an excess of -1.5 to +0.3 bits that depends on the tensor's role and on how far
training has moved the weights, the row length, the batch, the patch size and more.
tests/bench/artifact_prediction.py measures the excess on trained models and fits one line per role.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.model.manifest import Parameter
from shared.optim import by_muon, lr_factor
from shared.spec import Spec
from shared.spec.schedule import ScheduleSpec

FEATURES = ("dose", "row_length", "batch", "patch_size", "local_decoder", "builtin_text")
"""The variables of an excess. The first four are log2 of a ratio, so that 0 is the middle of what was measured;
the last two are 1 or 0: whether the decoder is autoregressive, and whether the text is the built-in one, which
has few byte values outside ASCII."""

# What a state space reads and writes in place of keys and queries (docs/techniques.md 7.1).
_MOST_ALIKE = {"layers.mamba2.b_proj": "layers.attn.k_proj", "layers.mamba2.c_proj": "layers.attn.q_proj"}

_SCHEDULE_POINTS = 1000


@dataclass(frozen=True)
class Calibration:
    """The fitted figures.

    `roles`: role to intercept and one slope for each of FEATURES, in bits per weight. `ranges`: lowest and
    highest measured value of each feature. `codec_ratio`: stored bits of matrices over the sum of their
    tensors' entropies is codec_ratio[0] + codec_ratio[1] * mean excess. `scale_frac`, `raw_frac`: stored over
    raw bytes of scales and of float32 values. `error_frac`: the error that 95 % of the `num_models` models
    stay within, each left out of the fit in turn.
    """

    roles: dict[str, tuple[float, ...]]
    ranges: tuple[tuple[float, float], ...]
    codec_ratio: tuple[float, float]
    scale_frac: float
    raw_frac: float
    error_frac: float
    num_models: int


def role_of(parameter: Parameter, spec: Spec) -> str:
    """The role of a tensor: its name without layer numbers; a table that is also the head is `tied`.

    Rows of symbols that never occur get the same gradient in every head, so they end up alike and cost
    next to nothing; in a table that is only looked up they stay as random as they were initialised.
    """
    name = re.sub(r"\.\d+|\.lora_[ab]", "", parameter.name).removesuffix(".weight")
    autoregressive = spec.model.decoder.kind == "autoregressive"
    if spec.model.tie_embeddings and name == ("decoder.embed" if autoregressive else "embed"):
        return f"{name}.tied"
    return "embed" if name == "decoder.embed" else name


def fitted_role(role: str, parameter: Parameter, spec: Spec, fitted: Container[str]) -> str:
    """The role itself where it has a fit, else the fitted one most like it, by what kind of tensor it is."""
    if role in fitted:
        return role
    of_group = {"embedding": "embed", "head": "head", "scalar": "layers.attn.q_proj"}
    if parameter.group in of_group:
        return of_group[parameter.group]
    part, _, last = role.rpartition(".")
    if part.endswith(".mlp"):
        return f"{part}.up_proj"
    inside = f"layers.attn.{last}"
    if not role.startswith(("layers.", "value_embed.")):
        return "embed.patch_proj"
    return _MOST_ALIKE.get(role, inside if inside in fitted else "layers.attn.v_proj")


def role_features(spec: Spec, parameter: Parameter, steps: int) -> NDArray[np.float64]:
    """FEATURES of one tensor after `steps` optimizer steps, float64 [6].

    The dose is the sum of the learning rates of all steps: every update of Muon has rows of norm 1 times the
    rate, so it is the length of the path in units of a row's norm. Weight decay shortens what is remembered.
    The batch is what the tensor's product sees at once: symbols inside the local decoder, else patches.
    """
    optimizer, model = spec.optimizer, spec.model
    rates = {
        "matrix": optimizer.matrix_lr,
        "embedding": optimizer.embed_lr,
        "head": optimizer.head_lr,
        "scalar": optimizer.scalar_lr,
        "adapter": optimizer.adapter_lr,
    }
    decay = optimizer.muon_weight_decay if by_muon(optimizer, parameter.group) else optimizer.adam_weight_decay
    path = rates[parameter.group] * steps * mean_lr_factor(spec.schedule)
    dose = -math.expm1(-decay * path) / decay if decay > 0 else path
    local = parameter.name.startswith(("decoder.layers", "decoder.embed", "decoder.context_proj"))
    positions = spec.training.batch_symbols / (1 if local else model.patch_size)
    ratios = (max(dose, 1e-9) / 4, parameter.shape[-1] / 256, positions / 1024, model.patch_size / 4)
    return np.array([*map(math.log2, ratios), model.decoder.kind == "autoregressive", spec.data.train == "builtin"])


@lru_cache
def mean_lr_factor(schedule: ScheduleSpec) -> float:
    """Mean of the schedule's factor over a whole run. A table of sizes asks for it once for each tensor and shape."""
    points = ((index + 0.5) / _SCHEDULE_POINTS for index in range(_SCHEDULE_POINTS))
    return sum(lr_factor(schedule, point) for point in points) / _SCHEDULE_POINTS

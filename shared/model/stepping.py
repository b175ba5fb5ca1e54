"""The model symbol by symbol: the forward pass over operations with state (shared.ops.stepping_ops).

The trunk advances once in a patch, by the patch that is complete; the local decoder once a symbol, inside the patch in
progress. Only symbols that are known are ever given to either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from shared.model.adapters import with_adapters
from shared.model.attention import rope_base
from shared.model.block_shape import attention_addons
from shared.model.decoder import decode_patches, earlier_symbols, patch_conditions, patch_logits
from shared.model.forward import trunk_outputs
from shared.model.logits import log_probs_of_logits
from shared.ops import Array, Ops, SteppingOps
from shared.ops.recorded import Recorded
from shared.spec import Spec


class ModelStepper:
    """shared.engine.protocol.Stepper of `forward` with fixed weights, over the operations of any implementation."""

    def __init__(
        self, ops: Ops, spec: Spec, params: Mapping[str, Array], rows: int, stepping: type[SteppingOps] = SteppingOps
    ) -> None:
        self.rows, self.spec = rows, with_fixed_angles(spec)
        self.params = with_adapters(ops, spec.model, params)
        model = spec.model
        self._ops = ops
        self._trunk = stepping(ops, model.num_patches, model.patch_size)
        # The context of the decoder goes through all symbols, its attention through those of a patch.
        self._symbols, self._inside = stepping(ops, model.seq_len, 1), stepping(ops, model.patch_size, 1)
        self._length = 0
        # The symbols of the patch in progress, [rows, P].
        self._patch = np.zeros((rows, model.patch_size), np.int32)
        # What the trunk says of it: conditions [rows, P, dim] of an autoregressive decoder, else logits [rows, P, V].
        self._said: Array = None
        # Steps by the position in a patch that they decode, and that of the trunk.
        self._recorded: dict[str | int, Recorded] = {}

    def start(self, x: np.ndarray) -> np.ndarray:
        rows, self._length = x.shape
        patch_size = self.spec.model.patch_size
        whole = self._length // patch_size * patch_size
        assert rows == self.rows and self._length < self.spec.model.seq_len, x.shape
        self._patch[:, : self._length - whole] = x[:, whole:]
        before = 1 if self.spec.vocabulary.document_start == 0 else 0
        known = np.concatenate([np.full((rows, patch_size), before, np.int32), x], axis=1)
        self._enter_patch(0, known[:, : patch_size + whole])
        return self._log_probs(0, known[:, patch_size - 1 :], whole)

    def advance(self, symbols: np.ndarray) -> np.ndarray:
        patch_size = self.spec.model.patch_size
        self._patch[:, self._length % patch_size] = symbols
        self._length += 1
        assert self._length < self.spec.model.seq_len, self._length
        if self._length % patch_size == 0:
            self._enter_patch(self._length // patch_size, self._patch)
        return self._log_probs(self._length, symbols[:, None], self._length)

    def _enter_patch(self, position: int, patches: np.ndarray) -> None:
        """Advance the trunk from a position on by the patches before each, [rows, n * P]."""
        self._trunk.begin(position)
        self._said = self._run("trunk", position, self._say, [self._trunk], self._ops.asarray(patches))

    def _log_probs(self, first: int, symbols: np.ndarray, needed: int) -> np.ndarray:
        """ln p of the next symbol, [rows, V]. `symbols` [rows, n] precede symbols first ... first + n - 1, of which the
        decoder computes those from `needed` on: the others are context of theirs."""
        within = needed % self.spec.model.patch_size
        self._symbols.begin(first)
        self._inside.begin(within)
        decode = partial(self._decode, within, needed - first)
        found = self._run(within, first, decode, [self._symbols, self._inside], self._said, self._ops.asarray(symbols))
        return self._ops.to_numpy(found)

    def _run(
        self, key: str | int, position: int, function: Callable[..., Array], ops: list[Ops], *inputs: Array
    ) -> Array:
        """function(*ops, *inputs), recorded for steps, which are alike but for what the operations remember."""
        if position == 0:
            return function(*ops, self.params, *inputs)
        if key not in self._recorded:
            self._recorded[key] = Recorded(ops, function, self.params, inputs)
            return self._recorded[key].result
        return self._recorded[key](*inputs)

    def _say(self, ops: Ops, params: Mapping[str, Array], patches: Array) -> Array:
        """What the trunk says of the patch after the last of `patches`."""
        h_BND = trunk_outputs(ops, self.spec, params, patches)[:, -1:]
        if self._is_autoregressive():
            return patch_conditions(ops, self.spec, params, h_BND)
        return decode_patches(ops, self.spec, params, h_BND)

    def _decode(
        self,
        within: int,
        unused: int,
        symbols_ops: Ops,
        ops: Ops,
        params: Mapping[str, Array],
        said: Array,
        symbols: Array,
    ) -> Array:
        """ln p [rows, V] after the last of `symbols`, for positions of the patch from `within` on."""
        if self._is_autoregressive():
            previous = earlier_symbols(symbols_ops, self.spec, params, symbols)[:, unused:]
            condition = said[:, within : within + previous.shape[1]]
            logits = patch_logits(ops, self.spec, params, condition, previous, within)[:, -1]
        else:
            logits = said[:, within + symbols.shape[1] - unused - 1]
        return log_probs_of_logits(ops, self.spec, params, logits)

    def _is_autoregressive(self) -> bool:
        return self.spec.model.decoder.kind == "autoregressive"


def with_fixed_angles(spec: Spec) -> Spec:
    """The spec with the angles of RoPE that a whole window of it has, which do not depend on the length."""
    model = spec.model
    base = rope_base(model.rope_base, attention_addons(model, 0), model.num_patches)
    attention = model.attention.model_copy(update={"ntk_positions": 0})
    return spec.model_copy(update={"model": model.model_copy(update={"attention": attention, "rope_base": base})})

"""A model of bytetwin for transformers: `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`.

`logits[:, t]` are of the symbol that follows `input_ids[:, t]`. A bytetwin model also has an opinion on the first
symbol of a window, so there is one more symbol, `bos_token_id`: in front of a row it stands for the start of a
window, and the logits at it are of the first symbol. It is never predicted. With it `model([start] + x[:-1])` are the
logits with which bytetwin scores x.

The logits are log-probabilities, after the model's softcap. Rows are padded on the right only, because patches begin
where the window does. There is no key-value cache: `generate` computes the whole window for each symbol.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from cuda_train.plain_ops import TorchOps
from shared.model import log_probs
from shared.model.logits import packed_parameters
from shared.spec import stored_spec


class BytetwinConfig(PretrainedConfig):
    """config.json: `spec` is the spec of the model as bytetwin stores it; the rest is derived from it."""

    model_type = "bytetwin"

    def __init__(self, spec: dict[str, Any] | None = None, use_cache: bool = False, **values: Any) -> None:
        self.spec = spec
        super().__init__(use_cache=use_cache, **values)


class BytetwinForCausalLM(PreTrainedModel, GenerationMixin):
    """The model. Parameters have bytetwin's names and are float32; `spec.training.dtype` is what it computes in."""

    config_class = BytetwinConfig
    main_input_name = "input_ids"
    _supports_cache_class = False

    def __init__(self, config: BytetwinConfig) -> None:
        super().__init__(config)
        self.house_spec = stored_spec(config.spec or {}, "config.json")
        self.names = [parameter.name for parameter in packed_parameters(self.house_spec)]
        for parameter in packed_parameters(self.house_spec):
            *folders, leaf = parameter.name.split(".")
            module: nn.Module = self
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, nn.Module())
                module = module.get_submodule(folder)
            module.register_parameter(leaf, nn.Parameter(torch.zeros(parameter.shape)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every weight is in the file."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Logits [B, T, V + 1] float32 of input_ids [B, T]; with labels [B, T] also their mean loss, in nats.

        Rows with the start of a window in front and rows without may be mixed. Raises ValueError for padding on the
        left, for a symbol that is none, and for a start inside a row.
        """
        model, size = self.house_spec.model, self.house_spec.vocabulary.size
        if attention_mask is not None and attention_mask.dim() == 2:
            if (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
                raise ValueError("attention_mask: rows are padded on the right only")
            input_ids = torch.where(attention_mask == 0, 0, input_ids)
        started = input_ids[:, :1] == size
        shifted = torch.cat([input_ids[:, 1:], torch.zeros_like(input_ids[:, :1])], dim=1)
        symbols = torch.where(started, shifted, input_ids)
        if bool(((symbols < 0) | (symbols >= size)).any()):
            raise ValueError(f"input_ids: symbols are 0 to {size - 1}, and {size} in front of a row")
        if bool(started.all()):
            symbols = symbols[:, :-1]
        # One position more than there are symbols, and whole patches. What follows the symbols is not seen.
        known = symbols.shape[1]
        length = -(-(known + 1) // model.patch_size) * model.patch_size
        if 0 < model.attention.ntk_positions < model.num_patches:
            # The angles of RoPE depend on the length of the window, so it is always the one that was scored.
            length = max(length, model.seq_len)
        x = F.pad(symbols.to(torch.int32), (0, length - known))
        named = dict(self.named_parameters())
        params = {name: named[name] for name in self.names}
        rows = log_probs(TorchOps(input_ids.device), self.house_spec, params, x)[:, : known + 1]
        if known == input_ids.shape[1]:
            rows = torch.where(started[..., None], rows[:, :-1], rows[:, 1:])
        logits = F.pad(rows, (0, 1), value=torch.finfo(rows.dtype).min)
        loss = None
        if labels is not None:
            # -100 is a label that does not count; the start of a window, also as padding, is never predicted.
            targets = torch.where(labels == size, -100, labels)[:, 1:].reshape(-1)
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, size + 1), targets)
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """All symbols each time: there is no cache."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

"""As much of transformers 5 as an exported model uses, with the same names: the suite does without the real package,
which takes 129 MB and seconds to import. tests/bench/export.py runs the real one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


class PretrainedConfig:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class PreTrainedModel(torch.nn.Module):
    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """What from_pretrained does to weights that are not in the file: nothing here."""

    @classmethod
    def from_pretrained(cls, folder: Path) -> PreTrainedModel:
        values = json.loads((folder / "config.json").read_text())
        model = cls(cls.config_class(**values))  # type: ignore[attr-defined]
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


class GenerationMixin:
    pass


@dataclass
class CausalLMOutput:
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PreTrainedTokenizer:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    @classmethod
    def from_pretrained(cls, folder: Path) -> PreTrainedTokenizer:
        values = json.loads((folder / "tokenizer_config.json").read_text())
        file = folder / "tokenizer.model"
        return cls(vocab_file=str(file) if file.exists() else None, **values)

    def encode(self, text: str) -> list[int]:
        return [self._convert_token_to_id(token) for token in self._tokenize(text)]  # type: ignore[attr-defined]

    def decode(self, symbols: list[int]) -> str:
        tokens = [self._convert_id_to_token(symbol) for symbol in symbols]  # type: ignore[attr-defined]
        return str(self.convert_tokens_to_string(tokens))  # type: ignore[attr-defined]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import transformers` find the names above."""
    package, outputs = ModuleType("transformers"), ModuleType("transformers.modeling_outputs")
    for thing in (PretrainedConfig, PreTrainedModel, GenerationMixin, PreTrainedTokenizer):
        setattr(package, thing.__name__, thing)
    outputs.CausalLMOutput = CausalLMOutput  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.modeling_outputs", outputs)

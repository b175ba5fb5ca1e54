"""A model of bytetwin in plain MLX: `from model import load; model = load(FOLDER)`.

`model(x)` are the log-probabilities [B, T, V] of symbols x int32 [B, T], T a multiple of the patch size: row t is of
x[:, t], and depends on x[:, :t] only. `python model.py --prompt TEXT` samples text. It needs mlx, numpy and pydantic,
and for a model of tokens sentencepiece.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from data.tokenizer import read_tokenizer
from mlx_train.plain_ops import MLXOps
from shared.model import log_probs
from shared.model.logits import packed_parameters
from shared.spec import Spec, stored_spec

TOKENIZER_FILE = "tokenizer.model"


class Model(nn.Module):
    """The model of a spec. Parameters have bytetwin's names and are float32."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self._spec = spec
        named = [(parameter.name, mx.zeros(parameter.shape)) for parameter in packed_parameters(spec)]
        for key, branch in tree_unflatten(named).items():
            self[key] = branch

    def __call__(self, x: mx.array) -> mx.array:
        """ln p(v | x[:, :t]) for every symbol v: [B, T, V] float32, of x [B, T] int32."""
        return log_probs(MLXOps(), self._spec, dict(tree_flatten(self.parameters())), x)


def load(folder: str | Path = Path(__file__).parent) -> Model:
    """The model in a folder with config.json and model.safetensors."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Model(stored_spec(config["spec"], str(folder / "config.json")))
    model.load_weights(str(folder / "model.safetensors"))
    mx.eval(model.parameters())
    return model


def sample(model: Model, symbols: Iterable[int], count: int, temperature: float = 0.8) -> Iterator[int]:
    """`count` symbols that follow the given ones, drawn by mx.random; temperature 0 takes the likeliest.

    Where the window is full its older half is dropped, in whole patches.
    """
    spec, context = model._spec, list(symbols)
    patch, longest = spec.model.patch_size, spec.model.seq_len
    for _ in range(count):
        if len(context) >= longest:
            context = context[longest // (2 * patch) * patch or patch :]
        length = longest if spec.model.attention.ntk_positions else -(-(len(context) + 1) // patch) * patch
        x = mx.array([context + [0] * (length - len(context))], dtype=mx.int32)
        row = model(x)[0, len(context)]
        chosen = mx.argmax(row) if temperature == 0.0 else mx.random.categorical(row / temperature)
        context.append(int(chosen.item()))
        yield context[-1]


def main() -> None:
    """Sample text from the model beside this file."""
    parser = argparse.ArgumentParser(description="Sample text from the model beside this file.")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--symbols", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    mx.random.seed(args.seed)
    model = load()
    vocabulary, text = model._spec.vocabulary, args.prompt.encode(errors="surrogateescape")
    if vocabulary.reads_tokens:
        pieces = read_tokenizer(Path(__file__).parent / TOKENIZER_FILE)
        for piece in pieces.decode_stream(sample(model, pieces.encode_prompt(text), args.symbols, args.temperature)):
            print(piece, end="", flush=True)
        print()
        return
    start = [] if vocabulary.document_start is None else [vocabulary.document_start]
    prompt = [*start, *(byte + vocabulary.byte_offset for byte in text)]
    drawn = list(sample(model, prompt, args.symbols, args.temperature))
    content = bytes(symbol - vocabulary.byte_offset for symbol in drawn if symbol >= vocabulary.num_specials)
    sys.stdout.write(args.prompt + content.decode(errors="replace") + "\n")


if __name__ == "__main__":
    main()

"""Training speed of the MLX engine beside a public MLX golf script (`train_gpt_mlx.py`), interleaved.

    python -m tests.bench.mlx_speed path/to/train_gpt_mlx.py [--rounds 8] [--batch-tokens 16384]

Both train the script's own architecture: 1024 tokens, 4 layers of 256, 4 heads over 2, MLP 2x relu^2, tied
head, sequences of 1024, float32, OpenBLAS. Two worker processes take turns (tests.bench.turns), one whole training step
each: batch, gradients, accumulation, optimizer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bench.turns import Worker, load_script, ratios_text, serve, write_random_shard

SEQ_LEN, VOCAB_SIZE, LAYERS, DIM, HEADS, KV_HEADS = 1024, 1024, 4, 256, 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--worker", choices=("public", "bytetwin"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        public = args.worker == "public"
        step = public_step(args.script, args.batch_tokens) if public else own_step(args.batch_tokens)
        serve({"step": lambda: seconds_of(step)})
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Run both workers in turn and print the ratio of each round, its median and its spread."""
    words = (str(args.script.resolve()), "--batch-tokens", str(args.batch_tokens))
    workers = {}
    for name in ("public", "bytetwin"):
        workers[name] = Worker("tests.bench.mlx_speed", *words, "--worker", name)
        first_s = float(workers[name].ask("step")[0])
        print(f"{name}: first step (with compilation) {first_s:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for round_number in range(args.rounds):
        for name, worker in workers.items():
            seconds[name].append(float(worker.ask("step")[0]))
        turn = {name: values[-1] for name, values in seconds.items()}
        print(f"round {round_number + 1}: public {turn['public']:.2f} s, bytetwin {turn['bytetwin']:.2f} s", flush=True)
    for worker in workers.values():
        worker.stop()
    for name, values in seconds.items():
        print(f"{name}: median {args.batch_tokens / statistics.median(values):.0f} tokens/s")
    print(f"ratio: {ratios_text(seconds['public'], seconds['bytetwin'])}")


def seconds_of(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def own_step(batch_tokens: int) -> Callable[[], None]:
    """One training step of the MLX engine on random tokens."""
    from shared.engine.package import create_engine
    from shared.model import initial_weights
    from shared.optim import step_hyperparameters
    from shared.spec import VocabularySpec, spec_from_dict

    class TokenVocabulary(VocabularySpec):
        @property
        def size(self) -> int:
            return VOCAB_SIZE

    model = {"num_layers": LAYERS, "model_dim": DIM, "num_heads": HEADS, "num_kv_heads": KV_HEADS, "seq_len": SEQ_LEN}
    model["mlp_dim"] = 2 * DIM
    training = {"steps": 1000, "batch_symbols": batch_tokens, "micro_batch_symbols": SEQ_LEN}
    spec = spec_from_dict({"name": "speed", "model": {**model, "mlp_negative_slope": 0.0}, "training": training})
    spec = spec.model_copy(update={"vocabulary": TokenVocabulary()})
    engine = create_engine("mlx", spec)
    engine.initialise(initial_weights(spec))
    generator = np.random.default_rng(0)

    def step() -> None:
        x = generator.integers(0, VOCAB_SIZE, (batch_tokens // SEQ_LEN, SEQ_LEN)).astype(np.int32)
        engine.train_step(x, step_hyperparameters(spec, 0, 0.0))()

    return step


def public_step(script: Path, batch_tokens: int) -> Callable[[], None]:
    """One training step of the public script, with the calls of its own loop."""
    from mlx_train import blas

    assert blas.load_openblas() or sys.platform != "linux"
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_unflatten

    shards = tempfile.TemporaryDirectory()
    write_random_shard(shards.name, VOCAB_SIZE)
    settings = {"DATA_PATH": shards.name, "NUM_LAYERS": LAYERS, "MODEL_DIM": DIM, "NUM_HEADS": HEADS}
    settings |= {"NUM_KV_HEADS": KV_HEADS, "TRAIN_SEQ_LEN": SEQ_LEN, "TRAIN_BATCH_TOKENS": batch_tokens}
    settings |= {"VOCAB_SIZE": VOCAB_SIZE, "GRAD_ACCUM_STEPS": 1}
    golf = load_script(script, settings)
    golf.COMPUTE_DTYPE = mx.float32
    args = golf.Hyperparameters()
    names = ["vocab_size", "num_layers", "num_heads", "num_kv_heads", "mlp_mult", "logit_chunk_tokens"]
    names += ["logit_softcap", "rope_base", "tied_embed_init_std", "qk_gain_init"]
    model = golf.GPT(dim=args.model_dim, **{name: getattr(args, name) for name in names})
    optimizer = golf.SplitOptimizers(model, args)
    loader = golf.TokenLoader(args.train_files)
    compiled = mx.compile(
        nn.value_and_grad(model, lambda x, y: model.loss(x, y)), inputs=model.state, outputs=model.state
    )

    def step(keep_folder: tempfile.TemporaryDirectory = shards) -> None:
        loss, grads = golf.loss_and_grad_chunked(args, loader, compiled)
        flat = golf.accumulate_flat_grads(None, grads, 1.0)
        mx.eval(loss, flat)
        clipped = golf.clip_grad_tree(tree_unflatten(list(flat.items())), args.grad_clip_norm)
        optimizer.step(model, clipped, step=0, lr_mul=1.0)
        mx.synchronize()

    return step


if __name__ == "__main__":
    main()

"""Training speed of the MLX engine beside a public MLX golf script (`train_gpt_mlx.py`), interleaved.

    python -m tests.bench.mlx_speed path/to/train_gpt_mlx.py [--rounds 8] [--batch-tokens 16384]

Both train the script's own architecture: 1024 tokens, 4 layers of 256, 4 heads over 2, MLP 2x relu^2, tied
head, sequences of 1024, float32, OpenBLAS. Two worker processes take turns, one whole training step each
(batch, gradients, accumulation, optimizer), so that what else the machine does meets both. The script is
not part of this project: its functions are called as its own loop calls them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SEQ_LEN, VOCAB_SIZE, LAYERS, DIM, HEADS, KV_HEADS = 1024, 1024, 4, 256, 4, 2
SHARD_TOKENS = 2_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--worker", choices=("public", "bytetwin"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(public_step(args.script, args.batch_tokens) if args.worker == "public" else own_step(args.batch_tokens))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Run both workers in turn and print the ratio of each round, its median and its spread."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.mlx_speed",
        str(args.script),
        "--batch-tokens",
        str(args.batch_tokens),
    ]
    workers = {}
    for name in ("public", "bytetwin"):
        workers[name] = subprocess.Popen(
            [*command, "--worker", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        first_s = ask(workers[name])
        print(f"{name}: first step (with compilation) {first_s:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for round_number in range(args.rounds):
        for name, worker in workers.items():
            seconds[name].append(ask(worker))
        turn = {name: values[-1] for name, values in seconds.items()}
        print(f"round {round_number + 1}: public {turn['public']:.2f} s, bytetwin {turn['bytetwin']:.2f} s", flush=True)
    for worker in workers.values():
        worker.communicate("")
    ratios = sorted(a / b for a, b in zip(seconds["public"], seconds["bytetwin"], strict=True))
    for name, values in seconds.items():
        print(f"{name}: median {args.batch_tokens / statistics.median(values):.0f} tokens/s")
    print(f"ratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)}")


def ask(worker: subprocess.Popen) -> float:
    """Let a worker take one step; its seconds."""
    assert worker.stdin and worker.stdout
    worker.stdin.write("step\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise SystemExit(f"the worker stopped with status {worker.wait()}")


def serve(step: Callable[[], None]) -> None:
    """One step for each line on stdin."""
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print("seconds", time.perf_counter() - begin, flush=True)


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

    model = {"num_layers": LAYERS, "model_dim": DIM, "num_heads": HEADS, "num_kv_heads": KV_HEADS}
    model |= {"mlp_dim": 2 * DIM, "seq_len": SEQ_LEN, "mlp_negative_slope": 0.0}
    training = {"steps": 1000, "batch_symbols": batch_tokens, "micro_batch_symbols": SEQ_LEN}
    spec = spec_from_dict({"name": "speed", "model": model, "training": training})
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
    write_random_shard(Path(shards.name) / "fineweb_train_000000.bin")
    settings = {"DATA_PATH": shards.name, "NUM_LAYERS": LAYERS, "MODEL_DIM": DIM, "NUM_HEADS": HEADS}
    settings |= {"NUM_KV_HEADS": KV_HEADS, "TRAIN_SEQ_LEN": SEQ_LEN, "TRAIN_BATCH_TOKENS": batch_tokens}
    settings |= {"VOCAB_SIZE": VOCAB_SIZE, "GRAD_ACCUM_STEPS": 1}
    os.environ.update({key: str(value) for key, value in settings.items()})
    module_spec = importlib.util.spec_from_file_location("public_script", script)
    assert module_spec and module_spec.loader
    golf = importlib.util.module_from_spec(module_spec)
    sys.modules["public_script"] = golf
    module_spec.loader.exec_module(golf)
    golf.COMPUTE_DTYPE = mx.float32
    args = golf.Hyperparameters()
    names = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "mlp_mult", "logit_chunk_tokens")
    names += ("logit_softcap", "rope_base", "tied_embed_init_std", "qk_gain_init")
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


def write_random_shard(path: Path) -> None:
    """Tokens with a Zipf distribution, in the community's shard format."""
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, SHARD_TOKENS
    tokens = np.random.default_rng(0).zipf(1.3, SHARD_TOKENS).clip(1, VOCAB_SIZE) - 1
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


if __name__ == "__main__":
    main()

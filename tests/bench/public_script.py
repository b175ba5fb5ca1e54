"""A training step of the public `train_gpt.py` (openai/parameter-golf), with the calls of its own loop.

Its classes are called as its `main` calls them, on the architecture and batch given here: see tests.bench.turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bench.turns import load_script, write_random_shard


def public_step(
    path: Path, shape: dict[str, int], batch_tokens: int, micro_batches: int, device: torch.device
) -> tuple[Callable[[], None], int]:
    """(one whole training step, number of parameters). `shape` has vocab_size, num_layers, num_heads,
    num_kv_heads, model_dim, mlp_mult and seq_len; the optimizer settings are the script's own defaults."""
    folder = tempfile.TemporaryDirectory()
    write_random_shard(folder.name, shape["vocab_size"])
    settings = {key.upper(): value for key, value in shape.items() if key != "seq_len"}
    golf = load_script(path, {**settings, "TRAIN_SEQ_LEN": shape["seq_len"], "DATA_PATH": folder.name})
    args = golf.Hyperparameters()
    golf.zeropower_via_newtonschulz5 = torch.compile(golf.zeropower_via_newtonschulz5)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.enable_flash_sdp(True)
        for others in ("cudnn", "mem_efficient", "math"):
            getattr(torch.backends.cuda, f"enable_{others}_sdp")(False)
    base, model = build_model(golf, args, device)
    optimizers = build_optimizers(golf, args, base)
    loader = golf.DistributedTokenLoader(args.train_files, 0, 1, device)

    def step(keep: tempfile.TemporaryDirectory = folder) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for _ in range(micro_batches):
            x, y = loader.next_batch(batch_tokens, shape["seq_len"], micro_batches)
            with torch.autocast(device_type=device.type, dtype=torch.bfloat16):
                loss = model(x, y)
            (loss / micro_batches).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step, sum(parameter.numel() for parameter in base.parameters())


def build_model(golf: Any, args: Any, device: torch.device) -> tuple[Any, Any]:
    """(the model, the model compiled), in the script's mixture of bfloat16 and float32."""
    names = ["vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult", "tie_embeddings"]
    names += ["tied_embed_init_std", "logit_softcap", "rope_base", "qk_gain_init"]
    base = golf.GPT(**{name: getattr(args, name) for name in names}).to(device).bfloat16()
    for module in base.modules():
        if isinstance(module, golf.CastedLinear):
            module.float()
    golf.restore_low_dim_params_to_fp32(base)
    return base, torch.compile(base, dynamic=False, fullgraph=True)


def build_optimizers(golf: Any, args: Any, base: Any) -> list[Any]:
    """Adam for the embedding, Muon for the matrices, Adam for the rest, as the script divides them."""
    patterns = golf.CONTROL_TENSOR_NAME_PATTERNS
    in_blocks = list(base.blocks.named_parameters())
    control = {name: p.ndim < 2 or any(pattern in name for pattern in patterns) for name, p in in_blocks}
    matrices = [p for name, p in in_blocks if not control[name]]
    scalars = [p for name, p in in_blocks if control[name]] + [base.skip_weights]
    adam = {"betas": (args.beta1, args.beta2), "eps": args.adam_eps, "fused": True}
    muon = golf.Muon(matrices, args.matrix_lr, args.muon_momentum, args.muon_backend_steps)
    return [
        torch.optim.Adam([base.tok_emb.weight], lr=args.tied_embed_lr, **adam),
        muon,
        torch.optim.Adam(scalars, lr=args.scalar_lr, **adam),
    ]

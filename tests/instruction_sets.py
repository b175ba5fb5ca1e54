"""Runs pytest as other processors compute: `python -m tests.instruction_sets tests/parity`, once for each set.

Libraries choose their kernels by what a processor can, and each kernel rounds in its own way. Variables make them take
those of an older one. First a process of its own shows what each library does with the variables: a set in which it
computes as ever tests nothing new, and every library has to compute otherwise in one of them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

# The oldest first. A processor can only be made to do less, so on an old one a set may change nothing. MKL obeys
# MKL_ENABLE_INSTRUCTIONS on Intel's processors alone, and COMPATIBLE on all.
SETS = {
    "SSE": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "AVX2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}

# What each library makes of the same numbers, as hashes.
PROBE = """
import hashlib, json
import mlx_train, mlx.core as mx
import numpy as np, torch

a, b = (np.random.default_rng(seed).standard_normal((257, 301)).astype(np.float32) for seed in (0, 1))
results = {
    "MLX product": np.array(mx.array(a) @ mx.array(b).T),
    "torch product": (torch.from_numpy(a) @ torch.from_numpy(b).T).numpy(),
    "torch softmax": torch.softmax(torch.from_numpy(a), dim=1).numpy(),
    "NumPy product": a.astype(np.float64) @ b.astype(np.float64).T,
}
print(json.dumps({name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in results.items()}))
"""


def results(variables: dict[str, str]) -> dict[str, str]:
    """Hash of what each library computes in a new process with these variables."""
    done = subprocess.run([sys.executable, "-c", PROBE], env=variables, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main(words: list[str]) -> int:
    """The first exit status of pytest that is not 0; 1 if some library computes the same under every set."""
    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"instruction sets: {platform.machine()} has one, nothing to choose")
        return 0
    plain = {name: value for name, value in os.environ.items() if not any(name in SETS[each] for each in SETS)}
    usual = results(plain)
    unchanged = set(usual)
    for name, variables in SETS.items():
        found = results(plain | variables)
        same = sorted(library for library in usual if found[library] == usual[library])
        unchanged &= set(same)
        setting = " ".join(f"{variable}={value}" for variable, value in variables.items())
        print(f"instruction set {name}: {setting}; as ever: {', '.join(same) or 'nothing'}", flush=True)
        status = subprocess.run([sys.executable, "-m", "pytest", *words], env=plain | variables).returncode
        if status:
            return status
    if unchanged:
        print(f"instruction sets: no set changes {', '.join(sorted(unchanged))}", file=sys.stderr)
    return 1 if unchanged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Triton without a GPU: a process where its interpreter runs kernels, and one where its compiler compiles them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests import ROOT

needs_triton = pytest.mark.skipif(sys.platform != "linux", reason="Triton has no wheels for other systems")


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton was imported with its interpreter switched on."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.syspath_prepend(str(ROOT))  # the new process imports the test's module by its name
            assert pool.submit(os.getpid).result() != os.getpid()
        yield pool


def compile_kernels(program: str, cache: Path) -> None:
    """Run a program that compiles kernels, without the interpreter and with nothing compiled before."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)

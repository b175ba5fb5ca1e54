"""The gradient of a small table by the kernels for GPUs, in Triton's interpreter, against the definition."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.tolerances import BF16_OPERATION_REL, OPERATION_REL
from tests.implementations import examples, seeds
from tests.triton_interpreter import compile_kernels, needs_triton


def added_up(index: np.ndarray, values: np.ndarray, num_rows: int) -> np.ndarray:
    """The definition in float64."""
    sums = torch.zeros((num_rows, values.shape[-1]), dtype=torch.float64)
    flat = torch.from_numpy(values.reshape(-1, values.shape[-1])).double()
    return sums.index_add_(0, torch.from_numpy(index.reshape(-1)).long(), flat).numpy()


def run_kernels(index: np.ndarray, values: np.ndarray, num_rows: int, programs: int) -> np.ndarray:
    """By so many programs. In float32, because Triton's interpreter multiplies no bfloat16 matrices, and in blocks
    smaller than the arrays."""
    from cuda_train.kernels import table_gradient as kernels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "num_programs", lambda *_: programs)
        patch.setattr(kernels, "BLOCK_COLUMNS", 32)
        patch.setattr(kernels, "LOOKED_THROUGH", 128)
        both = [torch.from_numpy(index), torch.from_numpy(index[..., ::-1].copy())]
        grads = kernels.table_gradients(both, torch.from_numpy(values), num_rows)
        return grads.numpy()


def check(
    interpreter: ProcessPoolExecutor, index: np.ndarray, values: np.ndarray, rows: int, programs: int
) -> np.ndarray:
    """Two tables at a time, the second read the other way round."""
    found = interpreter.submit(run_kernels, index, values, rows, programs).result()
    exact = np.stack([added_up(each, values, rows) for each in (index, index[..., ::-1].copy())])
    assert found.dtype == np.float32 and found.shape == exact.shape
    assert np.abs(found - exact).max() <= OPERATION_REL * np.abs(exact).max(initial=1.0)
    return found


# With and without rows beyond the blocks, among them more of these than are looked for.
row_counts = st.one_of(st.integers(1, 512), st.sampled_from([256, 257, 260, 272, 273, 512]))
# Around the ends of a step and of what is looked through at a time.
read_counts = st.one_of(st.integers(1, 300), st.sampled_from([1, 17, 64, 65, 128, 129]))


@needs_triton
@examples
@given(row_counts, read_counts, st.sampled_from([1, 20, 40]), st.integers(1, 7), st.booleans(), seeds)
def test_sums_are_those_of_the_definition(
    interpreter: ProcessPoolExecutor, rows: int, reads: int, dim: int, programs: int, few: bool, seed: int
):
    rng = np.random.default_rng(seed)
    # Of few symbols each is read often, and the last of the table is among them.
    symbols = np.append(rng.integers(0, rows, 2), rows - 1) if few else np.arange(rows)
    index = rng.choice(symbols, reads).astype(rng.choice([np.int32, np.int64]))
    check(interpreter, index, rng.standard_normal((reads, dim)).astype(np.float32), rows, programs)


@needs_triton
def test_an_index_of_a_batch_with_a_start_symbol(interpreter: ProcessPoolExecutor):
    rng = np.random.default_rng(1)
    index = np.concatenate([np.full((3, 2), 256), rng.integers(0, 256, (3, 300))], axis=1)
    values = rng.standard_normal((*index.shape, 33)).astype(np.float32)
    found, again = (check(interpreter, index, values, 257, 5) for _ in range(2))
    assert np.array_equal(found, again)


@needs_triton
def test_a_table_that_is_never_read(interpreter: ProcessPoolExecutor):
    assert not check(interpreter, np.zeros(0, np.int64), np.zeros((0, 8), np.float32), 257, 2).any()


def rows_and_gradients(fused: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are read and the gradient of their table, with the kernels as on a GPU: under torch.compile, and with
    values that the interpreter multiplies."""
    from cuda_train import table_gradient
    from cuda_train.kernels import table_gradient as kernels

    generator = torch.Generator().manual_seed(2)
    tables = [torch.randn((257, 12), generator=generator).requires_grad_() for _ in range(2)]
    indexes = [torch.randint(0, 257, (3, 100), generator=generator) for _ in range(2)]
    function = kernels.table_gradients
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "can_fuse", lambda _: True)
        patch.setattr(kernels, "table_gradients", lambda indexes, values, rows: function(indexes, values.float(), rows))
        read = torch.compile(table_gradient.read_rows, backend="aot_eager", fullgraph=True)
        rows = read(tables, indexes, torch.bfloat16, fused=fused).float()
        grads = torch.autograd.grad((rows * torch.randn(rows.shape, generator=generator)).sum(), tables)
    return rows.detach().numpy(), torch.stack(grads).numpy()


@needs_triton
def test_both_forms_of_the_gradient_of_rows(interpreter: ProcessPoolExecutor):
    (rows, grad), (same_rows, product) = (interpreter.submit(rows_and_gradients, fused).result() for fused in (1, 0))
    assert np.array_equal(rows, same_rows)
    assert np.linalg.norm(grad - product) <= BF16_OPERATION_REL * np.linalg.norm(product)


@needs_triton
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("in_training", "trained"), [(False, True), (True, False)])
def test_rows_without_gradients_stay_in_one_compiled_graph(count: int, in_training: bool, trained: bool):
    from cuda_train.table_gradient import read_rows

    tables = [torch.arange(20.0).reshape(5, 4).requires_grad_(trained)] * count
    indexes = [torch.tensor([4, 0, 4])] * count
    read = torch.compile(read_rows, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(in_training):
        rows = read(tables, indexes, torch.bfloat16)
    assert torch.equal(rows, (count * tables[0][indexes[0]]).bfloat16()) and not rows.requires_grad


def check_registration() -> dict[str, str]:
    """What torch finds out about the operator: schema, fake implementation, compilation."""
    from cuda_train.kernels import table_gradient as kernels

    return torch.library.opcheck(kernels._table_gradients, ([torch.arange(40) % 7] * 2, torch.rand(40, 12), 260))


@pytest.mark.slow
@needs_triton
def test_torch_accepts_the_registration(interpreter: ProcessPoolExecutor):
    results = interpreter.submit(check_registration).result()
    assert len(results) >= 3 and set(results.values()) == {"SUCCESS"}


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cuda_train.kernels import table_gradient as kernels

ARRAYS = {"numbers": "*i32", "index": "*i64", "values": "*bf16", "sums": "*fp32"}


def compiled(function, architecture, constants, warps, stages):
    signature = {name: "constexpr" if name in constants else ARRAYS.get(name, "i32") for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    arrays = [index for index, name in enumerate(function.arg_names) if name in ARRAYS]
    aligned = {(index,): [["tt.divisibility", 16]] for index in arrays}
    source, options = ASTSource(function, signature, places, aligned), {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


shape = {"dim": 256, "block_columns": kernels.BLOCK_COLUMNS}
dense = shape | {"num_rows": 256, "block_rows": kernels.BLOCK_ROWS, "block_reads": kernels.BLOCK_READS}
rare = shape | {"num_rows": 1, "block_rows": kernels.RARE_ROWS, "block_reads": 32, "looked_through": 512}
for architecture in (80, 90):
    found = compiled(kernels._dense_kernel, architecture, dense, 8, kernels.NUM_STAGES)
    assert compiled(kernels._rare_kernel, architecture, rare, 4, 3).asm["cubin"]
# Hopper's product: its values are loaded ahead, and its one-hot tile never leaves the registers.
assert found.asm["ptx"].count("wgmma.mma_async") == 2 * kernels.BLOCK_READS // 16
ahead = kernels.NUM_STAGES * kernels.BLOCK_READS * (2 * kernels.BLOCK_COLUMNS + 8)
assert "cp.async" in found.asm["ptx"] and found.metadata.shared <= ahead, (found.metadata.shared, ahead)
"""


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_for_gpus(tmp_path: Path):
    compile_kernels(COMPILE, tmp_path)

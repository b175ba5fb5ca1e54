"""A lossless coder of integer codes: interleaved rANS under adaptive contexts (docs/techniques.md 11.3).

It stands for the int8 matrices of a section in a number of bytes close to the entropy of the codes given the magnitude
of their row and column. Encoder and decoder share integer arithmetic only, so equal codes have equal bytes on every
machine. Shapes are not stored: the decoder is told them, and every size and loop follows from them alone.

Stream, all integers little-endian:

    4 bytes for each matrix      level; classes of its row offsets, column offsets and references
    4 bytes for each lane        the state that decoding starts from
    2 bytes for each word        in the order of reading, to the end

The symbols are the row offsets, column offsets and references of each matrix in turn, but for those that are all 0,
which class 0 says; then the codes, of rows with a reference the differences (shared.artifact.row_references). Matrices
without a trellis come first, row by row in one run. Those with a trellis follow column by column, where matrices of
equal columns and states stand one below the other and are one run (shared.artifact.rans).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.artifact.range_contexts import Magnitudes, magnitude_class, magnitudes_of
from shared.artifact.range_model import AdaptiveModel
from shared.artifact.rans import Decoder, Encoder, Run
from shared.artifact.row_references import add_references, find_references, subtract_references
from shared.errors import ArtifactError
from shared.quantisers.code_lengths import NUM_BINS
from shared.quantisers.trellis_states import MAX_TRELLIS_COLUMNS, quantisers_of

MIN_LANES, MAX_LANES = 8, 2048
SYMBOLS_PER_LANE = 1 << 14
"""A lane costs two bytes; more lanes are faster."""

HEAD_BYTES = 4

SYMBOL_OF_ZERO = 128


@dataclass(frozen=True)
class CodedShape:
    """What the decoder knows of a matrix: its shape, and the states of its trellis, 0 without one."""

    rows: int
    columns: int
    states: int = 0

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.rows * self.columns


def encode(matrices: Sequence[NDArray[np.int8]], states: Sequence[int]) -> bytes:
    """The stream of int8 matrices [R, C], each with the number of states of its trellis (0, 4 or 8)."""
    shapes = [CodedShape(len(matrix), matrix.shape[1], count) for matrix, count in zip(matrices, states, strict=True)]
    references = [find_references(matrix) for matrix in matrices]
    matrices = [subtract_references(matrix, back) for matrix, back in zip(matrices, references, strict=True)]
    magnitudes = [magnitudes_of(matrix) for matrix in matrices]
    vectors = [
        vector
        for found, back in zip(magnitudes, references, strict=True)
        for vector in (found.rows, found.columns, back)
    ]
    classes = [magnitude_class(vector) for vector in vectors]
    lanes = num_lanes(shapes)
    encoder = Encoder(lanes)

    def add(run: Run, model: AdaptiveModel, contexts: NDArray[np.uint8], codes: NDArray[np.int8]) -> None:
        encoder.add(run, model, contexts, codes.view(np.uint8) ^ np.uint8(SYMBOL_OF_ZERO))

    sent = _joined([vector for vector, name in zip(vectors, classes, strict=True) if name]).astype(np.int8)
    add(Run(len(sent), lanes), AdaptiveModel(), _class_contexts(classes, shapes), sent)
    model, plain = _model(shapes), _plain(shapes)
    contexts = _joined([magnitudes[index].bins().reshape(-1) for index in plain])
    codes = _joined([matrices[index].reshape(-1) for index in plain])
    add(Run(len(codes), lanes), model, contexts, codes)
    for run, members in _trellis_runs(shapes, lanes):
        tall = np.concatenate([matrices[index] for index in members])
        bins = np.concatenate([magnitudes[index].bins() for index in members])
        bins += np.uint8(NUM_BINS) * quantisers_of(tall, run.states)
        add(run, model, _by_column(bins), _by_column(tall))
    heads = np.column_stack([[found.level for found in magnitudes], np.reshape(classes, (-1, 3))])
    return heads.astype(np.uint8).tobytes() + encoder.finish()


def decode(stream: bytes, shapes: Sequence[CodedShape]) -> list[NDArray[np.int8]]:
    """The matrices of a stream. Raises ArtifactError if `encode` did not make it from matrices of these shapes."""
    head_bytes, lanes = HEAD_BYTES * len(shapes), num_lanes(shapes)
    heads = np.frombuffer(stream[:head_bytes], np.uint8).astype(np.int64)
    if len(heads) < head_bytes or heads.max(initial=0) > NUM_BINS:
        raise ArtifactError("range coded section has no levels of its tensors")
    levels, classes = heads[::HEAD_BYTES].tolist(), np.delete(heads, np.s_[::HEAD_BYTES]).tolist()
    decoder = Decoder(stream[head_bytes:], lanes)

    def read(run: Run, model: AdaptiveModel, contexts: NDArray[np.uint8]) -> NDArray[np.int8]:
        return (decoder.read(run, model, contexts) ^ np.uint8(SYMBOL_OF_ZERO)).view(np.int8)

    contexts = _class_contexts(classes, shapes)
    sent = read(Run(len(contexts), lanes), AdaptiveModel(), contexts).astype(np.int64)
    vectors = _vectors(sent, classes, shapes)
    magnitudes = [Magnitudes(*of_tensor) for of_tensor in zip(levels, vectors[::3], vectors[1::3], strict=True)]
    model, plain = _model(shapes), _plain(shapes)
    contexts = _joined([magnitudes[index].bins().reshape(-1) for index in plain])
    codes = read(Run(len(contexts), lanes), model, contexts)
    matrices = dict(zip(plain, _cut(codes, [shapes[index] for index in plain]), strict=True))
    for run, members in _trellis_runs(shapes, lanes):
        bins = np.concatenate([magnitudes[index].bins() for index in members])
        tall = np.ascontiguousarray(read(run, model, _by_column(bins)).reshape(-1, run.rows).T)
        matrices |= zip(members, _cut(tall.reshape(-1), [shapes[index] for index in members]), strict=True)
    decoder.finish()
    return [add_references(matrices[index], back) for index, back in enumerate(vectors[2::3])]


def num_lanes(shapes: Sequence[CodedShape]) -> int:
    """Lanes of the stream of some shapes: a power of two, but no more than there are codes."""
    size = sum(shape.size for shape in shapes)
    lanes = 1 << max(size // SYMBOLS_PER_LANE, 1).bit_length() - 1
    return min(max(lanes, MIN_LANES), MAX_LANES, max(size, 1))


def _vectors(sent: NDArray[np.int64], classes: Sequence[int], shapes: Sequence[CodedShape]) -> list[NDArray[np.int64]]:
    """Rows, columns and references of every matrix, from those that were sent one after the other."""
    found, start = [], 0
    for length, name in zip(_vector_lengths(shapes), classes, strict=True):
        found.append(sent[start : start + length] if name else np.zeros(length, np.int64))
        start += length if name else 0
    return found


def _vector_lengths(shapes: Sequence[CodedShape]) -> list[int]:
    return [length for shape in shapes for length in (shape.rows, shape.columns, shape.rows)]


def _class_contexts(classes: Sequence[int], shapes: Sequence[CodedShape]) -> NDArray[np.uint8]:
    """The contexts of the vectors that are sent: the bin of their own mean magnitude, which their class names."""
    named = zip(classes, _vector_lengths(shapes), strict=True)
    return _joined([np.full(length, name - 1) for name, length in named if name]).astype(np.uint8)


def _plain(shapes: Sequence[CodedShape]) -> list[int]:
    """The matrices without a trellis."""
    return [index for index, shape in enumerate(shapes) if not shape.states]


def _model(shapes: Sequence[CodedShape]) -> AdaptiveModel:
    """The model of the codes: a second set of contexts for the second quantiser of trellises, if there are any."""
    return AdaptiveModel(2 if any(shape.states for shape in shapes) else 1)


def _trellis_runs(shapes: Sequence[CodedShape], lanes: int) -> list[tuple[Run, list[int]]]:
    """Runs of the matrices with a trellis: those of equal columns and states, one below the other, are one matrix."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(shapes):
        if shape.states:
            groups.setdefault((shape.columns, shape.states), []).append(index)
    runs = []
    for (columns, states), members in groups.items():
        if columns > MAX_TRELLIS_COLUMNS:
            raise ArtifactError(f"a row of {columns} codes is too long for a trellis, at most {MAX_TRELLIS_COLUMNS}")
        rows = sum(shapes[index].rows for index in members)
        runs.append((Run(rows * columns, lanes, rows, states), members))
    return runs


def _cut(codes: NDArray[np.int8], shapes: Sequence[CodedShape]) -> Iterator[NDArray[np.int8]]:
    """The matrices that lie one after the other in a flat array."""
    start = 0
    for shape in shapes:
        yield codes[start : start + shape.size].reshape(shape.rows, shape.columns)
        start += shape.size


def _by_column(matrix: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(matrix.T).reshape(-1)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, np.int8), *arrays]) if len(arrays) != 1 else arrays[0]

"""The shard format: round trips, and one clear error for every way a file can be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.shards import BYTES_VERSION, HEADER_BYTES, MAGIC, TOKENS_VERSION, ShardWriter, read_shard
from shared.errors import DataError
from tests.datasets import written
from tests.token_text import write_shard


def header(*fields: int) -> bytes:
    return np.array([*fields, *[0] * (256 - len(fields))], dtype="<i4").tobytes()


@settings(max_examples=50)
@given(symbols=hnp.arrays(st.sampled_from([np.uint8, np.uint16]), st.integers(1, 300)))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, symbols: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, symbols)
    read = read_shard(path)
    assert read.dtype == symbols.dtype
    assert np.array_equal(read, symbols)


def test_bytes_on_disk_are_the_community_format(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    write_shard(path, np.array([1, 258, 65535], dtype=np.uint16))
    assert path.read_bytes() == header(20240520, 1, 3) + b"\x01\x00\x02\x01\xff\xff"
    path = tmp_path / "bytes.bin"
    write_shard(path, np.frombuffer(b"abc", dtype=np.uint8))
    assert path.read_bytes() == header(20240520, 2, 3) + b"abc"


def test_vocabulary_size_in_the_header_is_ignored(tmp_path: Path) -> None:
    path = written(tmp_path / "a.bin", header(MAGIC, TOKENS_VERSION, 2, 8192) + b"\x07\x00\x08\x00")
    assert read_shard(path).tolist() == [7, 8]


def test_a_read_shard_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        read_shard(path)[0] = 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes"),
        (header(MAGIC, BYTES_VERSION, 3)[:1000], "only 1000 bytes"),
        (header(MAGIC + 1, BYTES_VERSION, 3) + b"abc", "magic number 20240521, not 20240520"),
        (header(MAGIC, 3, 3) + b"abc", "shard version 3; known are 1"),
        (header(MAGIC, BYTES_VERSION, 0), "counts 0 symbols; a shard has at least one"),
        (header(MAGIC, BYTES_VERSION, -1) + b"abc", "counts -1 symbols"),
        (header(MAGIC, BYTES_VERSION, 4) + b"abc", "has 1027 bytes but its header counts 4 symbols, which makes 1028"),
        (header(MAGIC, BYTES_VERSION, 2) + b"abc", "has 1027 bytes but its header counts 2 symbols, which makes 1026"),
        (header(MAGIC, TOKENS_VERSION, 2) + b"abc", "has 1027 bytes but its header counts 2 symbols, which makes 1028"),
        (header(MAGIC, TOKENS_VERSION, 2**31 - 1) + b"ab", "counts 2147483647 symbols"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path / "damaged.bin", content)
    with pytest.raises(DataError) as caught:
        read_shard(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.bin: the shard is missing"):
        read_shard(tmp_path / "gone.bin")


def test_an_interrupted_writer_leaves_no_readable_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    writer = ShardWriter(path)
    writer.write(b"abc")
    writer.abandon()
    assert path.stat().st_size == HEADER_BYTES + 3
    with pytest.raises(DataError, match="magic number 0"):
        read_shard(path)

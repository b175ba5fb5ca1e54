"""General compressors: measured once for a text, kept beside the dataset, never waited for by a score."""

from __future__ import annotations

import json
import lzma
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import brotli
import numpy as np
import pytest
import zstandard

from data import builtin, compressed, compressors
from data.compressed import find_results
from data.compressors import CompressorResult, compressor_results
from data.making import build_builtin
from shared.cli.main import main
from shared.errors import DataError
from tests import ROOT
from tests.datasets import full_disk, write_dataset, written
from tests.token_text import small_tokenizer

pytestmark = pytest.mark.usefixtures("datasets")
TEXT = b"".join(b"line %d of some text, %d words in all\n" % (number, number * 7919 % 1000) for number in range(400))


def kept_files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/compressors*"))


def never(*_: object) -> dict[str, CompressorResult]:
    raise AssertionError("a text was compressed that is known")


@pytest.mark.parametrize("size", [1, 999, 1000, 70_017])
def test_a_text_in_chunks_is_one_stream(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressors, "CHUNK_BYTES", 1000)
    text = np.random.default_rng(size).integers(97, 101, size).astype(np.uint8).tobytes()
    unpack = {
        "xz -9": lzma.decompress,
        "zstd -19": zstandard.ZstdDecompressor().decompress,
        "brotli -11": brotli.decompress,
    }
    results = compressor_results(text)
    assert tuple(results) == tuple(unpack) == compressors.NAMES
    for name, result in results.items():
        feed, end = compressors._COMPRESSORS[name](len(text))
        starts = range(0, len(text), compressors.CHUNK_BYTES)
        stream = b"".join([*(feed(text[start : start + compressors.CHUNK_BYTES]) for start in starts), end()])
        assert unpack[name](stream) == text
        assert result == CompressorResult(len(stream), 8 * len(stream) / len(text))


def test_compressors_work_at_the_level_that_they_are_named_for() -> None:
    expected = {
        "xz -9": lzma.compress(TEXT, preset=9),
        "zstd -19": zstandard.ZstdCompressor(level=19).compress(TEXT),
        "brotli -11": brotli.compress(TEXT, quality=11, lgwin=24),
    }
    found = {name: result.compressed_bytes for name, result in compressor_results(TEXT).items()}
    assert found == {name: len(stream) for name, stream in expected.items()}
    with pytest.raises(DataError, match="empty text"):
        compressor_results(b"")


def test_a_stop_ends_all_compressors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressors, "POLL_S", 0.0)
    text = np.random.default_rng(0).integers(0, 256, 30 * compressors.CHUNK_BYTES).astype(np.uint8).tobytes()
    fed: list[int] = []

    def counting(text_bytes: int) -> compressors._Stream:
        return (lambda chunk: fed.append(len(chunk)) or chunk), bytes  # type: ignore[func-returns-value]

    def stop(done: int, total: int) -> None:
        assert 0 <= done <= total == len(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(compressors, "_COMPRESSORS", {"slow": compressors._brotli, "fast": counting})
    with pytest.raises(KeyboardInterrupt):
        compressor_results(text, stop)
    # Left to itself the slow one takes many seconds.
    assert len(fed) <= 30


def test_the_import_measures_and_a_score_reads(
    tmp_path: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "text.txt", TEXT)
    assert main(["data", "import", "toy", str(path), "--split", "heldout", "--json"]) == 0
    captured = capsys.readouterr()
    expected = compressor_results(TEXT)
    document = json.loads(captured.out)
    assert {name: CompressorResult(**values) for name, values in document["compressors"].items()} == expected
    assert f"held-out text of toy, bits per byte: xz -9 {expected['xz -9'].bpb:.4f}" in captured.err
    (name,) = kept_files(datasets)
    assert name.startswith("toy/compressors_") and name.endswith(".json")
    monkeypatch.setattr(compressed, "compressor_results", never)
    text_sha256 = json.loads((datasets / name).read_text())["text_sha256"]
    assert find_results(text_sha256) == expected
    assert find_results("0" * 64) == {}
    assert compressed.measure_heldout("toy") == expected
    # A dataset without held-out text has nothing to measure.
    assert main(["data", "import", "other", str(path), "--split", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compressors"] == {}


def test_the_builtin_text_comes_with_its_figures(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = builtin.BuiltinCorpus(["to be trained on"], ["to be scored"], "a small one")
    monkeypatch.setattr(builtin, "build_corpus", lambda progress: small)
    build_builtin()
    assert [name.split("/")[0] for name in kept_files(datasets)] == ["builtin"]


def test_prepare_measures_what_an_older_version_did_not(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(heldout=[TEXT])
    write_dataset("training", train=[TEXT])
    assert kept_files(datasets) == []
    words = ["prepare", "tiny", "--set", "data.train=training", "--set", "data.heldout=toy"]
    assert main(words) == 0
    assert [name.split("/")[0] for name in kept_files(datasets)] == ["toy"]
    monkeypatch.setattr(compressed, "compressor_results", never)
    assert main(words) == 0


def test_the_same_text_in_tokens_is_not_compressed_again(
    tmp_path: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that changes nothing leaves the text of the bytes; the dataset of tokens has the figures itself."""
    write_dataset(heldout=[b"the same words again"])
    model = written(tmp_path / "t.model", small_tokenizer().content)
    assert main(["tokenizer", "encode", "tokens", "toy", "--tokenizer", str(model)]) == 0
    of_tokens = kept_files(datasets)
    assert [name.split("/")[0] for name in of_tokens] == ["tokens"]
    monkeypatch.setattr(compressed, "compressor_results", never)
    compressed.measure_heldout("toy")
    assert kept_files(datasets) == [*of_tokens, of_tokens[0].replace("tokens/", "toy/")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"{}",
        lambda whole: whole[:-10],
        # The file of another text, and of fewer compressors.
        lambda whole: re.sub(rb'"text_sha256": "......', b'"text_sha256": "012345', whole),
        lambda whole: re.sub(rb'"xz -9": [0-9]+,', b"", whole),
    ],
)
def test_a_damaged_file_counts_as_missing(datasets: Path, damage: Callable[[bytes], bytes]) -> None:
    write_dataset(heldout=[TEXT])
    expected = compressed.measure_heldout("toy")
    path = datasets / kept_files(datasets)[0]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert compressed.find_results(json.loads(whole)["text_sha256"]) == {}
    assert compressed.measure_heldout("toy") == expected
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_time_only(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(heldout=[TEXT])
    monkeypatch.setattr(compressed, "write_atomically", full_disk)
    assert compressed.measure_heldout("toy") == compressor_results(TEXT)
    assert kept_files(datasets) == []


def test_several_processes_measure_at_once(datasets: Path) -> None:
    write_dataset(heldout=[TEXT])
    code = "from data.compressed import measure_heldout; print(sorted(measure_heldout('toy').items()))"
    workers = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = {worker.communicate(timeout=120)[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert outputs == {f"{sorted(compressor_results(TEXT).items())}\n"}
    assert len(kept_files(datasets)) == 1 and not list(datasets.glob("*/.*"))

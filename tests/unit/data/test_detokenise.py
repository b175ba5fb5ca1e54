"""Token shards to documents: exactly the text, exactly the bytes of the table, whatever the shards' cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data import detokenise
from data.detokenise import TokenDocuments
from data.token_bytes import TokenBytes
from shared.errors import DataError
from tests.token_text import trained_model, write_shard

START = 1
VARIANTS: dict[str, dict[str, Any]] = {
    "the public one": {},
    "all spaces kept": {"remove_extra_whitespaces": False, "normalisation": "identity"},
    "a space put before": {"add_dummy_prefix": True},
}


def train_processor(**options: Any) -> Any:
    texts = [f"the quick brown fox {index} jumps over the lazy dog, and then the end" for index in range(100)]
    return sentencepiece.SentencePieceProcessor(model_proto=trained_model(texts, **options))


PROCESSORS = {name: train_processor(**options) for name, options in VARIANTS.items()}
PUBLIC = PROCESSORS["the public one"]


def reference_bytes(processor: Any, tokens: list[int]) -> int:
    """docs/techniques.md 1.2 token by token, for a stream that follows a document start."""
    total = 0
    boundary = True
    for token in tokens:
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            boundary = True
            continue
        piece = processor.id_to_piece(token)
        if processor.is_byte(token):
            total += 1
        elif piece.startswith("\u2581"):
            total += len(piece[1:].encode()) + (not boundary)
        else:
            total += len(piece.encode())
        boundary = False
    return total


def write_shards(folder: Path, tokens: list[int], cuts: list[int]) -> list[Path]:
    """The stream in shards that end at the cuts, those without a token left out."""
    paths: list[Path] = []
    for part in np.split(np.array(tokens, dtype=np.uint16), sorted(cuts)):
        if len(part):
            path = folder / f"part_{len(paths):06d}.bin"
            write_shard(path, part)
            paths.append(path)
    return paths


def documents_of(folder: Path, tokens: list[int], *, processor: Any = PUBLIC, ends_here: bool = True) -> TokenDocuments:
    return TokenDocuments(write_shards(folder, tokens, []), TokenBytes(processor), ends_here=ends_here)


def refusal(folder: Path, tokens: list[int], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(documents_of(folder, tokens, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pieces(*names: str) -> list[int]:
    tokens = [PUBLIC.piece_to_id(name) for name in names]
    assert PUBLIC.unk_id() not in tokens
    return tokens


@pytest.mark.slow
@settings(max_examples=120)
@given(data=st.data(), variant=st.sampled_from(list(VARIANTS)), batch=st.integers(1, 60), ends_here=st.booleans())
def test_any_text_comes_back_as_the_model_normalised_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, variant: str, batch: int, ends_here: bool
) -> None:
    processor = PROCESSORS[variant]
    characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \u2581\u3000 theqfox01\n")
    texts = data.draw(st.lists(st.text(characters, max_size=20), min_size=1, max_size=8))
    encoded = [processor.encode(text, out_type=int) for text in texts]
    tokens = [token for document in encoded for token in (START, *document)]
    cuts = data.draw(st.lists(st.integers(1, len(tokens)), max_size=4))
    expected = [processor.normalize(text).replace("\u2581", " ").removeprefix(" ").encode() for text in texts]
    if not ends_here:
        expected, encoded = expected[:-1], encoded[:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detokenise, "BATCH_TOKENS", batch)
        paths = write_shards(tmp_path_factory.mktemp("shards"), tokens, cuts)
        read_bytes: list[int] = []
        reader = TokenDocuments(paths, TokenBytes(processor), ends_here=ends_here, advance=read_bytes.append)
        assert list(reader) == [text for text in expected if text]
    assert reader.total_bytes == sum(map(len, expected))
    assert reader.total_bytes == sum(reference_bytes(processor, document) for document in encoded)
    assert reader.empty_documents == expected.count(b"")
    assert reader.num_tokens == len(tokens)
    assert sum(read_bytes) == 2 * len(tokens)
    assert (reader.unfinished_tokens > 0) == (not ends_here)


@settings(max_examples=60)
@given(data=st.data(), variant=st.sampled_from(list(VARIANTS)))
def test_the_table_is_the_reference_on_any_tokens(data: st.DataObject, variant: str) -> None:
    processor = PROCESSORS[variant]
    tokens = data.draw(st.lists(st.integers(0, processor.vocab_size() - 1), min_size=1, max_size=30))
    counts = TokenBytes(processor).counts(np.array(tokens, dtype=np.uint16), START)
    assert counts.sum() == reference_bytes(processor, tokens)
    # Counting in two pieces is counting at once.
    cut = data.draw(st.integers(1, len(tokens)))
    table, array = TokenBytes(processor), np.array(tokens, dtype=np.uint16)
    assert table.counts(array[:cut], START).sum() + table.counts(array[cut:], tokens[cut - 1]).sum() == counts.sum()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_spaces_at_the_start_are_one_fewer_in_every_model(tmp_path: Path, variant: str) -> None:
    # What SentencePiece itself decodes here depends on the model: all leading spaces dropped, or none.
    processor = PROCESSORS[variant]
    space = processor.piece_to_id("\u2581")
    assert space != processor.unk_id()
    letter = next(token for token in range(4, processor.vocab_size()) if processor.id_to_piece(token) == "t")
    tokens = [START, letter, START, space, letter, START, space, space, letter, space, START, space]
    assert list(documents_of(tmp_path, tokens, processor=processor)) == [b"t", b"t", b" t "]


def test_empty_documents_are_counted_and_left_out(tmp_path: Path) -> None:
    reader = documents_of(tmp_path, [START, START, *pieces("t"), START])
    assert list(reader) == [b"t"]
    assert reader.empty_documents == 2


def test_a_character_in_byte_pieces_across_shards(tmp_path: Path) -> None:
    tokens = [START, *pieces("t", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"), START, *pieces("t")]
    paths = write_shards(tmp_path, tokens, [3, 4])
    assert list(TokenDocuments(paths, TokenBytes(PUBLIC))) == ["t\U0001f600".encode(), b"t"]


def test_damage_is_found_where_it_is(tmp_path: Path) -> None:
    good = [START, *pieces("t")]
    half_a_character = [START, *pieces("<0xF0>", "t")]
    assert "part_000000.bin: document 2 of the split decodes to 4 bytes, its tokens count 2" in refusal(
        tmp_path, [*good, *good, *half_a_character, *good]
    )


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([5, START, 5], "begins with token 5, not a document start (1)"),
        ([START, 5, 9999, 5], "token 9999 at position 2; the tokenizer has the ids 0 to 329"),
        ([START, 3], "decodes to 5 bytes, its tokens count 0"),
    ],
)
def test_tokens_that_are_no_documents(tmp_path: Path, tokens: list[int], message: str) -> None:
    assert message in refusal(tmp_path, tokens)


def test_a_document_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detokenise, "MAX_DOCUMENT_TOKENS", 50)
    monkeypatch.setattr(detokenise, "BATCH_TOKENS", 20)
    assert "no document start (1) in 60 tokens; allowed are 50" in refusal(tmp_path, [START, *pieces("t") * 99])


def test_byte_shards_are_no_token_shards(tmp_path: Path) -> None:
    path = tmp_path / "bytes.bin"
    write_shard(path, np.frombuffer(b"text", dtype=np.uint8))
    with pytest.raises(DataError, match="shard version 2; token shards have version 1"):
        list(TokenDocuments([path], TokenBytes(PUBLIC)))

"""SentencePiece tokenizers (docs/techniques.md 2.3): text to tokens and back, and where their models are kept.

A tokenizer is one `.model` file, known by the SHA-256 of its content. Those trained here lie in
`datasets_root()/tokenizers`; every dataset of tokens carries a copy of its own.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data import caseops, folders
from data.shards import require_regular
from data.token_bytes import SPACE_MARK, TokenBytes, Tokens, has_space_piece, load_processor
from data.writer import TOKENIZER_FILE
from shared.errors import DataError
from shared.spec.vocabulary import DOCUMENT_START, MAX_TOKENS, NUM_SPECIALS

SUFFIX = ".model"

# White space at the ends and in runs, line ends, a character that NFKC replaces, one that nmt drops.
_CHANGED_BY_OTHERS = ("  a  b ", "a\r\n\tb", "\u2102\ufb01", "a\x07\u200b")


class Tokenizer:
    """A checked SentencePiece model.

    Attributes: `content` (of the model file), `sha256` (of it), `vocab_size`, `table` (bytes of each token).
    """

    def __init__(self, content: bytes, origin: Path) -> None:
        """`origin` names the model in errors. Raises DataError if it is none or cannot account for its text."""
        self._processor = load_processor(origin, content)
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.table = TokenBytes(self._processor)
        self.vocab_size = self.table.vocab_size
        self._check(origin)
        self._pieces = [self._piece_text(token) for token in range(self.vocab_size)]
        self._byte_pieces = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        # It changes no text: `identity` with a piece for every byte.
        self._is_exact = all(map(self._processor.is_byte, self._byte_pieces)) and all(
            self._processor.normalize(text) == text.replace(" ", SPACE_MARK) for text in _CHANGED_BY_OTHERS
        )
        # Small letters compose with marks with which capitals do not (h and U+0331), so a normal form would lose case.
        if self.table.has_caseops and not self._is_exact:
            raise DataError(f"{origin}: it has the sentinels of CaseOps and changes text; allowed is `identity`")

    def encode(self, texts: list[str]) -> list[Tokens]:
        """One document of tokens for each text, uint16 `[T]`, the document start in front."""
        if self.table.has_caseops:
            texts = list(map(caseops.encode, texts))
        if self._is_exact:
            encoded = [self._encode_exactly(text) for text in texts]
        else:
            encoded = self._processor.encode(texts, num_threads=1)
        return [np.array([DOCUMENT_START, *ids], dtype=np.uint16) for ids in encoded]

    def _encode_exactly(self, text: str) -> list[int]:
        """Tokens of a text, bytes where pieces would lose it: a space at the start, which the byte table does not
        count, and the character that stands for a space in pieces."""
        rest = text.removeprefix(" ")
        first, *others = self._processor.encode(rest.split(SPACE_MARK), num_threads=1)
        mark = [self._byte_pieces[byte] for byte in SPACE_MARK.encode()]
        tokens = [*([self._byte_pieces[ord(" ")]] if rest != text else []), *first]
        for part in others:
            tokens += [*mark, *part]
        return tokens

    def normalised(self, text: str) -> str:
        """The text as the tokenizer normalises it before cutting it into pieces: the text that its tokens stand for."""
        if self._is_exact:
            return text
        normalised: str = self._processor.normalize(text).replace(SPACE_MARK, " ")
        # As in the byte table: the one space that a document may begin with is not counted.
        return normalised.removeprefix(" ")

    def encode_prompt(self, text: bytes) -> list[int]:
        """Tokens of a text that begins a document; what is not UTF-8 becomes U+FFFD."""
        (tokens,) = self.encode([text.decode("utf-8", errors="replace")])
        return [int(token) for token in tokens]

    def decode_stream(self, tokens: Iterable[int], prompt: Iterable[int] = ()) -> Iterator[str]:
        """The text of tokens that come one by one, as soon as each character is complete. They continue the tokens of
        `prompt`, in whose last word CaseOps may have left all letters capital."""
        decoder, case = codecs.getincrementaldecoder("utf-8")(errors="replace"), caseops.CaseDecoder()

        def decoded(content: bytes, final: bool = False) -> str:
            text = decoder.decode(content, final)
            return case.decode(text) if self.table.has_caseops else text

        decoded(b"".join(self._pieces[token] for token in prompt), final=True)
        for token in tokens:
            if text := decoded(self._pieces[token]):
                yield text
        if text := decoded(b"", final=True):
            yield text

    def piece(self, token: int) -> bytes:
        """Bytes that a token adds to a text that has begun; none for a special one."""
        return self._pieces[token]

    def _piece_text(self, token: int) -> bytes:
        """Bytes that a token adds to a text that has begun."""
        processor = self._processor
        piece: str = processor.id_to_piece(token)
        if processor.is_byte(token):
            return bytes([int(piece.removeprefix("<0x").removesuffix(">"), 16)])
        is_text = not (processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token))
        return piece.replace(SPACE_MARK, " ").encode() if is_text else b""

    def _check(self, origin: Path) -> None:
        processor, table = self._processor, self.table
        if table.document_start != DOCUMENT_START or not table.can_decode:
            raise DataError(f"{origin}: the document start must be id {DOCUMENT_START}, it is {table.document_start}")
        if self.vocab_size > MAX_TOKENS:
            raise DataError(f"{origin}: {self.vocab_size} tokens; allowed are {MAX_TOKENS}: a shard stores 16 bits")
        for token in range(NUM_SPECIALS):
            if not (processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token)):
                raise DataError(f"{origin}: id {token} must be a special token, it is {processor.id_to_piece(token)!r}")
        if table.folds_case:
            raise DataError(f"{origin}: it folds capital letters, so its tokens are not those of the text")
        # Without it every space becomes three byte pieces, and the score is a fifth too low (docs/techniques.md 1.2).
        if not has_space_piece(processor):
            raise DataError(f"{origin}: it has no piece for a lone space; its bytes cannot be counted")


def tokenizers_folder() -> Path:
    """The folder of the models of `bytetwin tokenizer train`."""
    return folders.datasets_root() / folders.TOKENIZERS


def tokenizer_path(name: str) -> Path:
    """The model file of a trained tokenizer, existing or not. Raises DataError for a name that is not a file name."""
    folders.dataset_folder(name)
    return tokenizers_folder() / f"{name}{SUFFIX}"


def tokenizer_names() -> list[str]:
    """Names of the trained tokenizers, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in tokenizers_folder().glob(f"[!.]*{SUFFIX}"))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model file. Raises DataError."""
    try:
        content = require_regular(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer ({error.strerror or error})") from None
    return Tokenizer(content, path)


def find_tokenizer(word: str) -> Tokenizer:
    """A trained tokenizer by name, or the one of a `.model` file. Raises DataError if there is none."""
    if word.endswith(SUFFIX):
        return read_tokenizer(Path(word))
    path = tokenizer_path(word)
    if not path.exists():
        known = ", ".join(tokenizer_names()) or "none yet"
        raise DataError(
            f"no tokenizer {word!r} in {path.parent}; there are: {known}; `bytetwin tokenizer train` adds one"
        )
    return read_tokenizer(path)


def tokenizer_by_hash(sha256: str) -> Tokenizer:
    """The tokenizer a model was trained with, from any copy on disk. Raises DataError if there is none."""
    root = folders.datasets_root()
    for path in [*tokenizers_folder().glob(f"*{SUFFIX}"), *root.glob(f"*/{TOKENIZER_FILE}")]:
        if not path.is_file():
            continue
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == sha256:
            return Tokenizer(content, path)
    raise DataError(f"no tokenizer with SHA-256 {sha256 or '(none)'} in {root}, which the model was trained with")

"""The symbols of a bytetwin model as a tokenizer of transformers.

A text becomes the symbols that a document of it has in bytetwin: its bytes, or the tokens of tokenizer.model, behind
the start of a document where the vocabulary has one. A byte is written `<0x41>`, any other symbol `<|5|>`. No special
symbol is read out of a text. The start of a window (`bos_token`) is not added: put it in front where the first symbol
is to be predicted too, as lm-eval does.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from data.tokenizer import read_tokenizer
from shared.spec import VocabularySpec

TOKENIZER_FILE = "tokenizer.model"
START = "<|start of window|>"


class BytetwinTokenizer(PreTrainedTokenizer):
    """`vocabulary` is that section of the spec; `vocab_file` is needed where symbols are tokens."""

    vocab_files_names = {"vocab_file": TOKENIZER_FILE}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str | None = None, vocabulary: dict[str, Any] | None = None, **values: Any) -> None:
        self.vocabulary = vocabulary or {}
        self.house = VocabularySpec(**self.vocabulary)
        self.vocab_file = vocab_file
        self.pieces = read_tokenizer(Path(str(vocab_file))) if self.house.reads_tokens else None
        start = self.house.document_start
        values |= {"bos_token": START, "pad_token": START, "padding_side": "right", "split_special_tokens": True}
        if start is not None:
            values["eos_token"] = self._convert_id_to_token(start)
        values["special_tokens_pattern"] = "none"
        super().__init__(vocabulary=self.vocabulary, **values)

    @property
    def vocab_size(self) -> int:
        """Symbols, without the start of a window."""
        return self.house.size

    def get_vocab(self) -> dict[str, int]:
        """Symbols by how they are written, with the start of a window."""
        symbols = {self._convert_id_to_token(symbol): symbol for symbol in range(self.vocab_size)}
        return symbols | {START: self.vocab_size}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        content = text.encode("utf-8", errors="surrogatepass")
        if self.pieces is not None:
            return [self._convert_id_to_token(token) for token in self.pieces.encode_prompt(content)]
        start = self.house.document_start
        symbols = [byte + self.house.byte_offset for byte in content]
        return [self._convert_id_to_token(symbol) for symbol in ([] if start is None else [start]) + symbols]

    def _convert_token_to_id(self, token: str) -> int:
        if token == START:
            return self.vocab_size
        if token.startswith("<0x"):
            return int(token[3:-1], 16) + self.house.byte_offset
        return int(token[2:-2])

    def _convert_id_to_token(self, index: int) -> str:
        if self.house.reads_tokens or index < self.house.num_specials or index >= self.house.size:
            return f"<|{index}|>"
        return f"<0x{index - self.house.byte_offset:02X}>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text; what is not UTF-8 becomes U+FFFD, and special symbols are not in it."""
        symbols = [self._convert_token_to_id(token) for token in tokens if token != START]
        if self.pieces is not None:
            return "".join(self.pieces.decode_stream(symbols))
        specials, offset = self.house.num_specials, self.house.byte_offset
        return bytes(symbol - offset for symbol in symbols if symbol >= specials).decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy tokenizer.model, if there is one; returns its path."""
        if self.vocab_file is None:
            return ()
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{TOKENIZER_FILE}"
        shutil.copyfile(self.vocab_file, path)
        return (str(path),)

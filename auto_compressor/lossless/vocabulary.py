"""What the symbols of a language model stand for: a table from symbols to bytes, and any bytes as symbols of it.

Text becomes tokens by its tokenizer, and is compared with the bytes that the table has for them. Where they differ, in
bytes that are no UTF-8, text that the tokenizer normalises, or special tokens that are spelled out, the text is halved
until a half comes back; what is left is coded byte by byte. So a decoder needs the table alone, and a special token is
never a symbol.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..tokenization_bytes import NUM_BYTES, ByteTokenizer


BLOCK = 256  # symbols of a block: a symbol is coded as its block, if there are several, and its place in it
NO_UTF8 = re.compile("([\udc80-\udcff]+)")  # bytes that are none, as `surrogateescape` writes them
BYTE_OF = {character: value for value, character in bytes_to_unicode().items()}  # in vocabularies as that of GPT-2
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # in vocabularies of SentencePiece
RAW_SHARE = 2.0**-8  # of the probability that bytes without a token have, together


@dataclass(frozen=True)
class Vocabulary:
    """
    The symbols of a model.

    Symbols are its token ids, and behind them, if some byte is no token, a block of 256 raw bytes.

    Args:
        pieces (`tuple[bytes, ...]`): What every token stands for; special tokens stand for nothing, and are never
            coded.
        start (`int`, *optional*): The token that a stream begins with. It costs nothing. Without one, the first symbol
            of a stream is one of equally likely ones.
        tokenize (`Callable`, *optional*): Token ids of a text; by default it is coded byte by byte.
    """

    pieces: tuple[bytes, ...]
    start: int | None = None
    tokenize: Callable[[str], list[int]] | None = None

    @cached_property
    def first_raw(self) -> int:
        """The first symbol behind those of tokens, at the beginning of a block."""
        return -(-len(self.pieces) // BLOCK) * BLOCK

    @cached_property
    def byte_symbols(self) -> list[int]:
        """The symbol of every byte."""
        single = {piece[0]: token for token, piece in enumerate(self.pieces) if len(piece) == 1}
        return [single.get(value, self.first_raw + value) for value in range(NUM_BYTES)]

    @cached_property
    def has_raw_bytes(self) -> bool:
        return max(self.byte_symbols) >= self.first_raw

    @cached_property
    def size(self) -> int:
        """Symbols, a multiple of 256."""
        return self.first_raw + BLOCK * self.has_raw_bytes

    @cached_property
    def is_coded(self) -> torch.Tensor:
        """Which tokens stand for something: `(tokens,)`."""
        return torch.tensor([bool(piece) for piece in self.pieces])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over what decides about decoding."""
        digest = hashlib.sha256(repr(self.start).encode())
        for piece in self.pieces:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return digest.hexdigest()

    def symbols_of(self, data: bytes) -> np.ndarray:
        """The symbols of any bytes, `(num_symbols,)`."""
        if self.tokenize is None:
            return np.array(self.byte_symbols)[np.frombuffer(data, np.uint8)]
        symbols: list[int] = []
        for place, part in enumerate(NO_UTF8.split(data.decode("utf-8", "surrogateescape"))):
            symbols += self.spelled(part) if place % 2 else self.tokens_of(part, self.tokenize)
        return np.array(symbols, dtype=np.int64)

    def bytes_of(self, symbols: np.ndarray) -> bytes:
        """What symbols `(num_symbols,)` stand for."""
        raw = self.first_raw
        return b"".join(self.pieces[s] if s < raw else bytes([s - raw]) for s in symbols.tolist())

    @property
    def lead(self) -> int:
        """Tokens in front of a stream."""
        return int(self.start is not None)

    def columns(self, symbols: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """The tokens by which a model reads streams of symbols `(rows, steps)`: `(rows, end - first)` of them, the
        start counted; raw bytes are read as the start too."""
        read = symbols[:, max(first - self.lead, 0) : end - self.lead].long()  # (rows, length)
        tokens = torch.where(read < self.first_raw, read, self.start or 0)
        return F.pad(tokens, (end - first - tokens.shape[1], 0), value=self.start or 0)

    def spelled(self, text: str) -> list[int]:
        """Text byte by byte."""
        return [self.byte_symbols[value] for value in text.encode("utf-8", "surrogateescape")]

    def tokens_of(self, text: str, tokenize: Callable[[str], list[int]]) -> list[int]:
        """Tokens of the longest parts of a text that come back; single characters that do not, byte by byte."""
        tokens = self.restorable_tokens(text, tokenize)
        if tokens is not None:
            return tokens
        if len(text) == 1:
            return self.spelled(text)
        middle = len(text) // 2
        return self.tokens_of(text[:middle], tokenize) + self.tokens_of(text[middle:], tokenize)

    def restorable_tokens(self, text: str, tokenize: Callable[[str], list[int]]) -> list[int] | None:
        """Tokens that stand for the bytes of a text; SentencePiece writes a space in front, unless there is a line."""
        data = text.encode()
        for before in ("", "\n"):
            tokens = [token for token in tokenize(before + text) if token < len(self.pieces) and self.pieces[token]]
            if (kept := self.behind(tokens, data)) is not None:
                return kept
        return None

    def behind(self, tokens: list[int], data: bytes) -> list[int] | None:
        """The last tokens, which stand for `data`, if there are such."""
        joined = b"".join(self.pieces[token] for token in tokens)
        extra, first = len(joined) - len(data), 0
        while extra > 0:
            extra -= len(self.pieces[tokens[first]])
            first += 1
        return tokens[first:] if extra == 0 and joined.endswith(data) else None

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The distribution over symbols `(rows, size)` that logits `(rows, vocab_size)` mean."""
        logits = logits[:, : len(self.pieces)].double()
        if not self.is_coded.all():
            logits = logits.masked_fill(~self.is_coded.to(logits.device), -torch.inf)
        probs = logits.softmax(dim=-1)  # (rows, tokens)
        if self.has_raw_bytes:
            raw = probs.new_full((len(probs), BLOCK), RAW_SHARE / BLOCK)
            probs = torch.cat([self.padded(probs * (1 - RAW_SHARE)), raw], dim=1)
        return self.padded(probs).cpu()

    def padded(self, probs: torch.Tensor) -> torch.Tensor:
        """With zeros up to a whole block."""
        missing = -probs.shape[1] % BLOCK
        return F.pad(probs, (0, missing)) if missing else probs

    def uniform(self, rows: int) -> torch.Tensor:
        """Equally likely symbols, `(rows, size)`."""
        return self.probabilities(torch.zeros(rows, len(self.pieces)))


BYTES = Vocabulary(tuple(bytes([value]) for value in range(NUM_BYTES)))


def piece_of(token: str | None, byte_level: bool) -> bytes:
    """What a token stands for in text; nothing if that is not clear."""
    if not token:
        return b""
    if byte_level:
        known = all(character in BYTE_OF for character in token)
        return bytes(BYTE_OF[character] for character in token) if known else b""
    if found := BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(found[1])
    return token.replace("\u2581", " ").encode("utf-8", "replace")


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are written in the 256 characters of GPT-2, one for each byte."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])


def vocabulary_of(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> Vocabulary:
    """
    The symbols of a model.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Without one, or with that of bytes, ids 0 to 255 are bytes.
        vocab_size (`int`): Tokens that the model predicts; others are not used.
    """
    if tokenizer is None or isinstance(tokenizer, ByteTokenizer):
        return BYTES
    byte_level, added = is_byte_level(tokenizer), tokenizer.added_tokens_decoder
    names = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), vocab_size))))
    pieces = [piece_of(name, byte_level) for name in names]
    special = set(tokenizer.all_special_ids)
    for token, text in added.items():
        if token < len(pieces):
            pieces[token] = b"" if text.special or token in special else text.content.encode()
    start = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), None)
    return Vocabulary(tuple(pieces), start, partial(tokens_in, tokenizer))


def tokens_in(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, in which special tokens that are spelled out are text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids


__all__ = ["BLOCK", "BYTES", "Vocabulary", "vocabulary_of"]

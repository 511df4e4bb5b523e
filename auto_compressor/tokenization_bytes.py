"""Tokenizer of raw bytes: a text is its UTF-8 bytes, a token id the value of a byte, and special tokens come after.

No vocabulary is learned or stored, and every text has exactly one sequence of ids. So has a file that is no text, read
as `data.decode("utf-8", "surrogateescape")`; `decode_bytes` gives it back.
"""

from itertools import chain
from numbers import Integral

import torch
from transformers import AddedToken, PreTrainedTokenizer
from transformers.utils import to_py_obj


NUM_BYTES = 256
SPECIAL_TOKENS = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "bos_token": "<|bos|>"}  # ids from 256 on


class ByteTokenizer(PreTrainedTokenizer):
    """
    Tokenizer whose ids 0 to 255 are bytes, and 256, 257, 258 the end of a text, padding and the beginning of a text.

    `decode(encode(text, add_special_tokens=False))` is `text` for every text that is valid Unicode. With
    `add_special_tokens` the end-of-text token is appended.

    Args:
        eos_token, pad_token, bos_token (`str` or `AddedToken`, *optional*): How 256, 257 and 258 are spelled, by
            default `"<|endoftext|>"`, `"<|pad|>"` and `"<|bos|>"`.
        split_special_tokens (`bool`, defaults to `True`): Whether a special token that is spelled out in a text is
            bytes like the rest; else it becomes the special token.
        special_tokens_pattern (`str`, defaults to `"eos"`): Which special tokens `add_special_tokens` adds.
        kwargs: Those of `PreTrainedTokenizer`.
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        eos_token: str | AddedToken | None = None,
        pad_token: str | AddedToken | None = None,
        bos_token: str | AddedToken | None = None,
        split_special_tokens: bool = True,
        special_tokens_pattern: str = "eos",
        **kwargs,
    ):
        spelled = {"eos_token": eos_token, "pad_token": pad_token, "bos_token": bos_token}
        named = {
            name: AddedToken(str(token or SPECIAL_TOKENS[name]), normalized=False, special=True)
            for name, token in spelled.items()
        }
        self._added_tokens_decoder = dict(enumerate(named.values(), start=NUM_BYTES))
        super().__init__(
            **named,
            split_special_tokens=split_special_tokens,
            special_tokens_pattern=special_tokens_pattern,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """The bytes and the three special tokens; `len(tokenizer)` counts tokens that are added later too."""
        return NUM_BYTES + len(SPECIAL_TOKENS)

    def get_vocab(self) -> dict[str, int]:
        return {chr(value): value for value in range(NUM_BYTES)} | self._added_tokens_encoder

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        """
        Returns a character per byte, that of its value; `bytes.decode("utf-8", "surrogateescape")` is undone.

        Raises:
            ValueError: if `text` has a surrogate other than U+DC80 to U+DCFF, which stand for the bytes 128 to 255.
        """
        try:
            return list(text.encode("utf-8", "surrogateescape").decode("latin-1"))
        except UnicodeEncodeError as error:
            raise ValueError(
                "`text` must have no surrogates but U+DC80 to U+DCFF, which stand for bytes that are no UTF-8, got"
                f" {text[error.start]!r} at position {error.start}."
            ) from error

    def _convert_token_to_id(self, token: str) -> int | None:
        return ord(token) if len(token) == 1 and ord(token) < NUM_BYTES else None

    def _convert_id_to_token(self, index: int) -> str:
        return self.decode_bytes([index]).decode("latin-1")

    def decode_bytes(self, ids: list[int] | torch.Tensor) -> bytes:
        """
        Returns the bytes that the ids stand for; special and other added tokens are left out.

        Args:
            ids (`list[int]` or `torch.Tensor` of shape `(length,)`): Token ids of one text.

        Raises:
            ValueError: if `ids` has something else than an id of this tokenizer, 0 to 258 if no tokens were added.
        """
        ids, known = list(to_py_obj(ids)), range(len(self))
        for index in ids:
            if not isinstance(index, Integral) or index not in known:
                raise ValueError(f"`ids` must be integers from 0 to {len(self) - 1}, got {index!r}.")
        return bytes([index for index in ids if index < NUM_BYTES])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Returns the text of the tokens, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs) -> str:
        """Returns the text of the ids; whitespace is never cleaned up, as that would make it another text."""
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        spelled = {i: token.content.encode() for i, token in self._added_tokens_decoder.items() if i not in skipped}
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        spelled_ids = chain.from_iterable(spelled.get(index, (index,)) for index in ids)
        return self.decode_bytes(list(spelled_ids)).decode("utf-8", errors="replace")


__all__ = ["NUM_BYTES", "SPECIAL_TOKENS", "ByteTokenizer"]

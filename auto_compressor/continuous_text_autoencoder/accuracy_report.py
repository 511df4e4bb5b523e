"""How many tokens come back from the latents of a continuous text autoencoder, and the texts that do not.

A report is a folder: `accuracy.json` with the figures of every length, and `error_cases.jsonl` with the texts that
have errors, which `auto-compressor view-errors` shows.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..files.whole_files import whole_folder
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder, check_tokenizer


ACCURACY_FILE, ERROR_CASES_FILE = "accuracy.json", "error_cases.jsonl"

TokenizedText = tuple[str | None, list[int]]  # without the text, it is what the tokens say


@dataclass
class Accuracy:
    """
    Counts of sequences and their tokens; every token counts once, whatever the length of its sequence.

    Args:
        length (`int`, *optional*): Tokens of each sequence; without it, they are of any length.
    """

    length: int | None
    sequences: int = 0
    correct_sequences: int = 0
    tokens: int = 0
    correct_tokens: int = 0

    def add(self, correct_tokens: int, total_tokens: int):
        self.sequences += 1
        self.correct_sequences += correct_tokens == total_tokens
        self.tokens += total_tokens
        self.correct_tokens += correct_tokens

    @property
    def token_accuracy(self) -> float:
        return self.correct_tokens / self.tokens

    @property
    def sequence_accuracy(self) -> float:
        """Share of the sequences that came back whole."""
        return self.correct_sequences / self.sequences

    def figures(self) -> dict[str, float | None]:
        return vars(self) | {"token_accuracy": self.token_accuracy, "sequence_accuracy": self.sequence_accuracy}


def cut_texts(texts: Iterable[TokenizedText], length: int) -> Iterator[TokenizedText]:
    """Joins the tokens of all texts and cuts them into sequences of one length; a shorter rest is left out."""
    pending: list[int] = []
    for _, token_ids in texts:
        pending += token_ids
        starts = range(0, len(pending) - length + 1, length)
        yield from ((None, pending[start : start + length]) for start in starts)
        pending = pending[len(starts) * length :]


@torch.no_grad()
def reconstruct_rows(model: ContinuousTextAutoencoder, rows: list[list[int]]) -> list[list[int]]:
    """What becomes of the tokens of every row, decoded from the means of its latents."""
    ids = [torch.tensor(row) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
    generated = model.reconstruct(pad_sequence(ids, batch_first=True).to(model.device), mask).tolist()
    return [row[: len(original)] for row, original in zip(generated, rows, strict=True)]


def error_case(
    text: str | None, token_ids: list[int], generated: list[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    original, decoded = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (token_ids, generated))
    correct_tokens = sum(map(int.__eq__, token_ids, generated))
    return {
        "original_text_full": original if text is None else text,
        "original_text_decoded": original,
        "generated_text": decoded,
        "token_accuracy": correct_tokens / len(token_ids),
        "correct_tokens": correct_tokens,
        "total_tokens": len(token_ids),
    }


def measure_accuracy(
    model: ContinuousTextAutoencoder,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[TokenizedText],
    errors: IO[str],
    length: int | None = None,
    batch_size: int = 16,
) -> Accuracy:
    """
    Counts what comes back of texts, and writes those that come back with errors as JSON lines.

    Args:
        model ([`ContinuousTextAutoencoder`]): In evaluation mode.
        tokenizer ([`PreTrainedTokenizerBase`]): The tokenizer of the model.
        texts (`Iterable[tuple[str | None, list[int]]]`): Texts and their tokens; those without tokens are left out.
        errors (`IO[str]`): Gets the lines.
        length (`int`, *optional*): Tokens of the sequences into which [`cut_texts`] cuts; without it, every text is a
            sequence.
        batch_size (`int`, defaults to 16): Sequences at once.

    Raises:
        ValueError: if there is no sequence, or for ids outside the vocabulary or another tokenizer.
    """
    check_tokenizer(tokenizer, model.config.vocab_size)
    accuracy = Accuracy(length)
    texts = iter(text for text in (texts if length is None else cut_texts(texts, length)) if text[1])
    while batch := list(islice(texts, batch_size)):
        for (text, token_ids), generated in zip(
            batch, reconstruct_rows(model, [ids for _, ids in batch]), strict=True
        ):
            accuracy.add(sum(map(int.__eq__, token_ids, generated)), len(token_ids))
            if token_ids != generated:
                errors.write(json.dumps(error_case(text, token_ids, generated, tokenizer)) + "\n")
    if not accuracy.sequences:
        raise ValueError(f"The texts must hold {length or 1} tokens at least.")
    return accuracy


def write_report(
    folder: Path,
    model: ContinuousTextAutoencoder,
    tokenizer: PreTrainedTokenizerBase,
    read_texts: Callable[[], Iterable[TokenizedText]],
    lengths: Iterable[int | None] = (None,),
    batch_size: int = 16,
) -> list[Accuracy]:
    """
    Writes `error_cases.jsonl` and `accuracy.json` into a folder, both or neither.

    Args:
        folder (`Path`): Where they go; it is made if it is not there.
        read_texts (`Callable`): Returns the texts, once for each length.
        lengths (`Iterable[int | None]`): As `length` of [`measure_accuracy`], each in turn.
        model, tokenizer, batch_size: As in [`measure_accuracy`].
    """
    with whole_folder(folder) as part:
        with (part / ERROR_CASES_FILE).open("w", encoding="utf-8") as file:
            results = [
                measure_accuracy(model, tokenizer, read_texts(), file, length, batch_size) for length in lengths
            ]
        figures = json.dumps([result.figures() for result in results], indent=2)
        (part / ACCURACY_FILE).write_text(figures, encoding="utf-8")
    return results


__all__ = ["ACCURACY_FILE", "ERROR_CASES_FILE", "Accuracy", "measure_accuracy", "write_report"]

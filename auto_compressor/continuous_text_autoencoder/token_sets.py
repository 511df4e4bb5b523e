"""Token statistics, and test sets made with them: texts without rare tokens, and tokens at random.

The filtered set asks how texts that are like the training data come back, the random one what is left where no token
says anything about another.
"""

import csv
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..files.whole_files import whole_file


COLUMNS = ("token_id", "count")
MAX_DIGITS = 18  # of a number, so that 64 bits hold it
KEPT, TOO_SHORT, UNSEEN, LOW_FREQUENCY = "kept", "too short", "with an unseen token", "with a low-frequency token"


def token_statistics(sequences: Iterable[list[int]]) -> dict[int, int]:
    """How often each token occurs, the most frequent first, and by id where counts are equal."""
    counts: Counter[int] = Counter()
    for token_ids in sequences:
        counts.update(token_ids)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_statistics(path: Path, counts: dict[int, int]):
    """Writes the CSV `token_id,count`, whole or not at all."""
    with whole_file(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(counts.items())


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file behind those that name its columns, with the numbers of their lines."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            if tuple(next(rows, ())) != COLUMNS:
                raise ValueError(f"{path} must begin with the line {','.join(COLUMNS)}.")
            yield from ((rows.line_num, row) for row in rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}.") from error


def read_statistics(path: Path, vocab_size: int) -> dict[int, int]:
    """
    Reads what `write_statistics` wrote.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is another file, has no tokens or one twice, a count below 1, or ids from `vocab_size` on.
    """
    counts: dict[int, int] = {}
    for line, row in read_rows(path):
        numbers = [int(value) for value in row if value.isdecimal() and len(value) <= MAX_DIGITS]
        if len(numbers) != 2 or len(row) != 2 or numbers[0] in counts or not numbers[1]:
            raise ValueError(f"{path}, line {line}: must be a new token id and its count, got {str(row):.80}.")
        counts[numbers[0]] = numbers[1]
    if max(counts, default=vocab_size) >= vocab_size:
        raise ValueError(
            f"{path} must hold token ids below {vocab_size}, those of the tokenizer, its largest is"
            f" {max(counts, default=None)}."
        )
    return counts


def low_frequency_threshold(counts: dict[int, int], low_fraction: float = 0.1) -> int:
    """The count up to which a token is of low frequency: that at `low_fraction` of the tokens, rarest first."""
    if not 0 <= low_fraction < 1:
        raise ValueError(f"`low_fraction` must be at least 0 and below 1, got {low_fraction}.")
    if not counts:
        raise ValueError("`counts` must hold one token at least.")
    return sorted(counts.values())[int(len(counts) * low_fraction)]


def frequent_tokens(counts: dict[int, int], low_fraction: float = 0.1) -> list[int]:
    """The tokens that are above `low_frequency_threshold`, by id; a `ValueError` if there are none."""
    threshold = low_frequency_threshold(counts, low_fraction)
    tokens = sorted(token for token, count in counts.items() if count > threshold)
    if not tokens:
        raise ValueError(f"`counts` must have tokens above the low-frequency threshold, {threshold}, it has none.")
    return tokens


def check_sizes(length: int, num_sequences: int):
    for name, value in (("length", length), ("num_sequences", num_sequences)):
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")


def random_window(token_ids: list[int], length: int, generator: random.Random) -> list[int]:
    start = generator.randrange(len(token_ids) - length + 1)
    return token_ids[start : start + length]


def filter_sequences(
    sequences: Iterable[list[int]],
    counts: dict[int, int],
    length: int = 512,
    low_fraction: float = 0.1,
    num_sequences: int = 5000,
    seed: int = 42,
) -> Iterator[tuple[str, list[int]]]:
    """
    A window of each text that has the length and no rare tokens.

    Args:
        sequences (`Iterable[list[int]]`): The tokens of texts; of longer ones, a random window counts.
        counts (`dict[int, int]`): Counts of tokens, from [`token_statistics`].
        length (`int`, defaults to 512): Tokens of a window.
        low_fraction (`float`, defaults to 0.1): Share of the tokens, the rarest, which no window may hold; those with
            the same count as the last of them are left out as well.
        num_sequences (`int`, defaults to 5000): Windows after which to stop.
        seed (`int`, defaults to 42): Seed of the random windows.

    Returns:
        `Iterator[tuple[str, list[int]]]`: Of each text what became of it, `KEPT`, `TOO_SHORT`, `UNSEEN` or
        `LOW_FREQUENCY`, and its window.

    Raises:
        ValueError: for an argument out of range, or counts that are all the same.
    """
    check_sizes(length, num_sequences)
    frequent, generator, num_kept = frozenset(frequent_tokens(counts, low_fraction)), random.Random(seed), 0
    for token_ids in sequences:
        if len(token_ids) < length:
            yield TOO_SHORT, token_ids
            continue
        window = random_window(token_ids, length, generator)
        kept = frequent.issuperset(window)
        num_kept += kept
        yield KEPT if kept else LOW_FREQUENCY if counts.keys() >= set(window) else UNSEEN, window
        if num_kept == num_sequences:
            return


def random_sequences(
    counts: dict[int, int], num_sequences: int = 1000, length: int = 512, low_fraction: float = 0.1, seed: int = 42
) -> Iterator[list[int]]:
    """
    Tokens at random, each of those that [`filter_sequences`] allows as likely as any other.

    Raises:
        ValueError: for an argument out of range, or counts that are all the same.
    """
    check_sizes(length, num_sequences)
    tokens, generator = frequent_tokens(counts, low_fraction), random.Random(seed)
    for _ in range(num_sequences):
        yield generator.choices(tokens, k=length)


def write_test_set(path: Path, sequences: Iterable[list[int]], tokenizer: PreTrainedTokenizerBase):
    """Writes JSONL `{text, token_ids}`, whole or not at all; a `ValueError` if there is no sequence."""
    num_sequences = 0
    with whole_file(path, "w", encoding="utf-8") as file:
        for token_ids in sequences:
            text = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
            file.write(json.dumps({"text": text, "token_ids": token_ids}) + "\n")
            num_sequences += 1
        if not num_sequences:
            raise ValueError(f"No text is left for {path}.")


__all__ = [
    "KEPT",
    "filter_sequences",
    "frequent_tokens",
    "low_frequency_threshold",
    "random_sequences",
    "read_statistics",
    "token_statistics",
    "write_statistics",
    "write_test_set",
]

"""Texts and their tokens from files, folders and the hub, one text in memory at a time."""

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset
from transformers import PreTrainedTokenizerBase

from .loading import first_line


READER_OF_ENDING = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# A line of a txt file keeps its end; in csv, the word "null" is text.
OPTIONS = {"text": {"keep_linebreaks": True}, "csv": {"keep_default_na": False}}


@contextmanager
def reading_rows(problem: str) -> Iterator[None]:
    """Makes whatever the reader of a file of rows raises one `ValueError` of one line; an `OSError` stays one."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # damaged files make readers raise almost anything
        raise ValueError(f"{problem}: {first_line(error.__cause__ or error)}") from error


def file_stream(path: Path, problem: str) -> IterableDataset:
    """The rows of a file; an `OSError` or a `ValueError` for one that is missing, empty or of another kind."""
    if path.suffix.lower() not in READER_OF_ENDING:
        raise ValueError(f"`data` {str(path)!r} must end in one of {', '.join(READER_OF_ENDING)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"`data` {str(path)!r} is empty.")
    reader = READER_OF_ENDING[path.suffix.lower()]
    files = glob.escape(str(path))
    with reading_rows(problem):
        return load_dataset(reader, data_files=files, split="train", streaming=True, **OPTIONS.get(reader, {}))


def open_stream(data: str, config_name: str | None, split: str, problem: str) -> IterableDataset:
    path = Path(data)
    if path.is_file() or path.suffix.lower() in READER_OF_ENDING:
        return file_stream(path, problem)
    try:
        with reading_rows(problem):
            return load_dataset(data, config_name, split=split, streaming=True)
    except OSError as error:
        cause = first_line(error).rstrip(".")
        raise OSError(f"`data` {data!r} cannot be loaded: {cause}. A local file needs no hub.") from error


def stream_rows(data: str, config_name: str | None = None, split: str = "train") -> Iterator[dict[str, Any]]:
    """
    The rows of a dataset, one at a time.

    Args:
        data (`str`): A txt file, of which every line is a row with the column `text`, a jsonl, json, csv or parquet
            file, a folder of such files, or a dataset of the hub.
        config_name (`str`, *optional*), split (`str`, defaults to `"train"`): What to read of a folder or a dataset of
            the hub.

    Raises:
        OSError: if there is no such file, folder or dataset, or the hub is out of reach.
        ValueError: for an empty file, an unknown ending, another split, or a file that does not hold what its ending
            says.
    """
    problem = f"`data` {data!r} cannot be read"
    stream = open_stream(data, config_name, split, problem)
    with reading_rows(problem):
        yield from stream


def tokenize_rows(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, text_column: str = "text"
) -> Iterator[tuple[str | None, list[int]]]:
    """
    Every text and its tokens, without special tokens; a column `token_ids` is taken as it is, with the text beside it.

    Raises:
        ValueError: for a row without the text column, or with something else than text or tokens in it.
    """
    for row in rows:
        text, token_ids = row.get(text_column), row.get("token_ids")
        if token_ids is None:
            if not isinstance(text, str):
                raise ValueError(
                    f"`text_column` {text_column!r} must hold strings, a row with {list(row)} has {text!r}."
                )
            token_ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        elif not isinstance(token_ids, list) or not all(isinstance(token, int) for token in token_ids):
            raise ValueError(f"The column token_ids must hold lists of integers, a row has {token_ids!r:.80}.")
        yield text, token_ids


__all__ = ["READER_OF_ENDING", "reading_rows", "stream_rows", "tokenize_rows"]

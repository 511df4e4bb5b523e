"""Whole documents out of folders, files and datasets, each with where it came from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .names import check_utf8
from .text_streams import READER_OF_ENDING, stream_rows


WHOLE_FILES = (".txt", ".md", ".rst", ".html")
ROW_FILES = tuple(ending for ending in READER_OF_ENDING if ending not in WHOLE_FILES)


def read_document(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, byte {error.start} is not.") from error


def text_of(row: dict[str, Any], text_column: str, source: str) -> str:
    text = row.get(text_column)
    if not isinstance(text, str):
        raise ValueError(
            f"`text_column` {text_column!r} must hold strings, {source} with {list(row)} has {text!r:.80}."
        )
    return text


def documents_of_rows(data: str, name: str, text_column: str, **options: Any) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(stream_rows(data, **options), start=1):
        source = f"{name}:{number}"
        yield source, text_of(row, text_column, source)


def documents_of_file(path: Path, name: str, text_column: str) -> Iterator[tuple[str, str]]:
    check_utf8("The name of a file", name)
    if path.suffix.lower() in WHOLE_FILES:
        yield name, read_document(path)
    else:
        yield from documents_of_rows(str(path), name, text_column)


def read_documents(
    data: str, text_column: str = "text", config_name: str | None = None, split: str = "train"
) -> Iterator[tuple[str, str]]:
    """
    Sources and texts of documents, one at a time.

    Args:
        data (`str`): A txt, md, rst or html file, which is one document; a jsonl, json, csv or parquet file, whose
            rows are documents; a folder with such files, at any depth; or a dataset of the hub.
        text_column (`str`, defaults to `"text"`): Column of the rows that holds the texts.
        config_name (`str`, *optional*), split (`str`, defaults to `"train"`): What to read of a dataset of the hub.

    Raises:
        OSError: if there is no such file, folder or dataset.
        ValueError: for a folder without documents, text that is not UTF-8, and rows without text.
    """
    path, endings = Path(data), (*WHOLE_FILES, *ROW_FILES)
    if path.is_file() and path.suffix.lower() in endings:
        yield from documents_of_file(path, path.name, text_column)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in endings)
        if not files:
            raise ValueError(f"`data` {data!r} must hold files that end in one of {', '.join(endings)}.")
        for file in files:
            yield from documents_of_file(file, file.relative_to(path).as_posix(), text_column)
    else:
        name = ":".join(filter(None, [data, config_name, split]))  # each of them has rows of its own
        yield from documents_of_rows(data, name, text_column, config_name=config_name, split=split)


__all__ = ["read_documents"]

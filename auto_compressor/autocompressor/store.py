"""Stores: the summary vectors of many documents on disk, made once and read in the order that a question asks for.

A store is a folder:

- `store.json` says which model made the vectors, and how;
- `shards/NAME.safetensors` holds the vectors `(vectors, width)` of some documents by their ids;
- `shards/NAME.jsonl` has a row for each of them: where it came from, its text, its tokens, a checksum of its vectors.

A shard is there once its rows are: they are written behind its vectors, each file whole or not at all. So a build that
is killed loses the shard that it was at, and goes on behind the others when it is started again.

Texts may not fit into memory together: they are read where they are needed, one at a time or a shard of them.
"""

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from ..files.identity import model_fingerprint
from ..files.whole_files import remove_left_over, write_whole


FORMAT = "auto_compressor.store.v1"
SETTINGS = "store.json"


class StoreError(OSError, ValueError):
    """A folder that is no store, or a damaged one."""


@dataclass(frozen=True)
class Document:
    """A text and where it came from: a file, or a file and the number of its row."""

    source: str
    text: str

    @property
    def id(self) -> str:
        """The document by its source and text: another text of the same source is another document."""
        return hashlib.sha256(f"{self.source}\0{self.text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Listing:
    """
    Which documents there are, without their texts.

    Args:
        documents (`Iterable[Document]`): The documents, which are read once.
        has_tokens (`Callable[[str], bool]`, *optional*): Whether a text has tokens; by default all have.

    Attributes:
        count (`int`): How many there are.
        sources (`dict[str, str]`): Their sources by their ids, without those of white space or without tokens.
        origins (`set[str]`): The files that they are from.
    """

    def __init__(self, documents: Iterable[Document], has_tokens: Callable[[str], bool] = bool):
        self.count, self.sources, self.origins = 0, dict[str, str](), set[str]()
        for document in documents:
            self.count += 1
            self.origins.add(origin(document.source))
            if document.text.strip() and has_tokens(document.text):
                self.sources[document.id] = document.source


def pick(documents: Iterable[Document], left: dict[str, str]) -> Iterator[Document]:
    """The documents whose ids are left, and takes these out of `left`; no more are read than it takes."""
    for document in documents if left else ():
        if left.pop(document.id, None) is not None:
            yield document
        if not left:
            return


@dataclass(frozen=True)
class StoreSettings:
    """
    Which model made the vectors of a store, and how.

    Args:
        model_name (`str`), model_type (`str`), fingerprint (`str`): The model, see [`~identity.model_fingerprint`].
        width (`int`), dtype (`str`): Of a vector.
        segment_length (`int`): Tokens of a segment.
        max_summary_length (`int`): Most vectors of a segment.
    """

    model_name: str
    model_type: str
    fingerprint: str
    width: int
    dtype: str
    segment_length: int
    max_summary_length: int

    @classmethod
    def of_model(
        cls, model: PreTrainedModel, segment_length: int | None = None, max_summary_length: int | None = None
    ) -> "StoreSettings":
        """Those of a new store; by default segments and vectors are as the model was trained."""
        most = model.config.max_vectors
        if most == 0:
            raise ValueError("A store needs a model that makes summary vectors, this one makes none.")
        return cls(
            model_name=model.config.name_or_path,
            model_type=model.config.model_type,
            fingerprint=model_fingerprint(model),
            width=model.embedding_dim,
            dtype=str(model.dtype).removeprefix("torch."),
            segment_length=positive("segment_length", segment_length) or model.default_segment_length,
            max_summary_length=min(positive("max_summary_length", max_summary_length) or most, most),
        )


@dataclass(frozen=True)
class StoredRow:
    """
    What a store knows of a document without reading it.

    Args:
        id (`str`), source (`str`): The document.
        text_bytes (`int`), tokens (`int`), vectors (`int`): Its length, and that of what it was compressed to.
        sha256 (`str`): A checksum of the vectors.
    """

    id: str
    source: str
    text_bytes: int
    tokens: int
    vectors: int
    sha256: str

    @property
    def ratio(self) -> float:
        """Tokens per vector."""
        return self.tokens / self.vectors


@dataclass(frozen=True)
class StoredDocument:
    """
    A row of a shard on disk.

    Args:
        id (`str`), source (`str`), text (`str`): The document.
        tokens (`int`), vectors (`int`): Its length, and that of what it was compressed to.
        sha256 (`str`): A checksum of the vectors.
    """

    id: str
    source: str
    text: str
    tokens: int
    vectors: int
    sha256: str

    @property
    def row(self) -> StoredRow:
        length = len(self.text.encode("utf-8", "surrogatepass"))
        return StoredRow(self.id, self.source, length, self.tokens, self.vectors, self.sha256)


def positive(name: str, value: int | None) -> int | None:
    """Raises a `ValueError` for a number below 1."""
    if value is not None and value < 1:
        raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    return value


def checksum(vectors: torch.Tensor) -> str:
    """SHA-256 of vectors `(vectors, width)`, their shape and dtype."""
    digest = hashlib.sha256(f"{tuple(vectors.shape)} {vectors.dtype}".encode())
    digest.update(vectors.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_line(document: StoredDocument) -> str:
    return json.dumps(asdict(document)) + "\n"


class SummaryStore:
    """
    A folder of summary vectors of many documents.

    Args:
        folder (`Path`): A store that is there; [`SummaryStore.create`] makes one.

    Raises:
        OSError: if it is none, or is damaged; in the latter case it is a `ValueError` too.
    """

    def __init__(self, folder: Path):
        self.folder, self.shards = Path(folder), Path(folder) / "shards"
        self.settings = read_settings(self.folder / SETTINGS)
        self.versions: dict[str, tuple[int, int]] = {}
        self.rows_of: dict[str, list[StoredRow]] = {}
        self.rows: dict[str, StoredRow] = {}
        self.shard_of: dict[str, str] = {}
        self.refresh()

    def rows_file(self, shard: str) -> Path:
        return self.shards / f"{shard}.jsonl"

    def found_versions(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The shards on disk, without those that another process takes out meanwhile."""
        for path in sorted(self.shards.glob("*.jsonl")):
            with suppress(FileNotFoundError):
                yield path.stem, version(path)

    def refresh(self):
        """Reads what is new, of which another process may have written some: a build adds shard by shard."""
        versions = dict(self.found_versions())
        new = [shard for shard, found in versions.items() if self.versions.get(shard) != found]
        if self.versions.keys() - versions.keys() or self.versions.keys() & set(new):
            # Something was taken out: what is left may be in other shards too.
            self.rows_of, self.rows, self.shard_of, new = {}, {}, {}, list(versions)
        self.versions = versions
        for shard in new:
            with suppress(FileNotFoundError):
                self.rows_of[shard] = [each.row for each in read_shard(self.rows_file(shard))]
                self.rows |= {row.id: row for row in self.rows_of[shard]}
                self.shard_of |= dict.fromkeys((row.id for row in self.rows_of[shard]), shard)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Waits until no other process writes, and knows what those before have written."""
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.refresh()
            yield
            self.refresh()

    @classmethod
    def create(cls, folder: Path, settings: StoreSettings) -> "SummaryStore":
        """A new store, or the one that is there if its settings are the same, else a `ValueError`."""
        path = Path(folder) / SETTINGS
        if not path.exists():
            if Path(folder).is_dir() and any(Path(folder).iterdir()):
                raise ValueError(f"{folder} must be a store, or empty: it holds something else.")
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"format": FORMAT, **asdict(settings)}, indent=2).encode())
        store = cls(folder)
        store.check_settings(settings)
        return store

    def __len__(self) -> int:
        return len(self.rows)

    def check_settings(self, settings: StoreSettings):
        """Raises a `ValueError` that says what differs from the settings of the store."""
        mine, other = asdict(self.settings), asdict(settings)
        named = [key for key in mine if mine[key] != other[key] and key != "model_name"]
        if named:
            differences = "; ".join(f"`{key}` is {mine[key]}, not {other[key]}" for key in named)
            raise ValueError(f"The store {self.folder} was made otherwise: {differences}.")

    def check_model(self, model: PreTrainedModel):
        """Raises a `ValueError` for a model with other weights than those that made the vectors."""
        if model_fingerprint(model) != self.settings.fingerprint:
            made_by = f"{self.settings.model_name!r:.200} ({self.settings.model_type})"
            raise ValueError(f"The store {self.folder} was made by {made_by}, `model` has other weights.")

    def missing(self, listing: Listing) -> dict[str, str]:
        """The sources, by ids, of the documents that are not in the store."""
        return {id: source for id, source in listing.sources.items() if id not in self.rows}

    def documents(self) -> Iterator[StoredDocument]:
        """All documents with their texts, one at a time, in the order of `rows`."""
        seen = set()
        for shard in self.rows_of:
            for document in read_shard(self.rows_file(shard), self.versions[shard]):
                if document.id not in seen:
                    seen.add(document.id)
                    yield document

    def document(self, id: str) -> StoredDocument:
        """A document with its text; a `StoreError` if another process has taken it out."""
        path = self.rows_file(self.shard_of[id])
        with suppress(FileNotFoundError):
            for document in read_shard(path):
                if document.id == id:
                    return document
        raise StoreError(f"{path} no longer holds {self.rows[id].source}: another process took it out.")

    def write(self, documents: list[Document], vectors: list[torch.Tensor], tokens: list[int]):
        """
        Adds documents as one shard, as far as no other process has added them since they were missing.

        Args:
            documents (`list[Document]`): The documents.
            vectors (`list[torch.Tensor]`): Of each `(vectors, width)`.
            tokens (`list[int]`): Of each.
        """
        with self.writing():
            new = [each for each in zip(documents, vectors, tokens, strict=True) if each[0].id not in self.rows]
            stored = [
                StoredDocument(document.id, document.source, document.text, count, len(part), checksum(part))
                for document, part, count in new
            ]
            shard = hashlib.sha256("".join(each.id for each in stored).encode()).hexdigest()[:16]
            if stored:
                self.write_vectors(shard, {document.id: part for document, part, _ in new})
                self.write_rows(shard, stored)

    def write_vectors(self, shard: str, vectors: dict[str, torch.Tensor]):
        self.shards.mkdir(exist_ok=True)
        write_whole(self.shards / f"{shard}.safetensors", save(vectors, {"format": FORMAT}))

    def write_rows(self, shard: str, documents: list[StoredDocument]):
        write_whole(self.rows_file(shard), "".join(map(to_line, documents)).encode())

    def remove(self, ids: Iterable[str]):
        """Takes documents out; what a killed call leaves are vectors without a row, which nothing reads."""
        ids = set(ids)
        with self.writing():
            for shard, rows in self.rows_of.items():
                kept = {row.id for row in rows} - ids
                if len(kept) < len(rows):
                    self.rewrite(shard, kept)

    def rewrite(self, shard: str, kept: set[str]):
        """A shard without its other documents, or without its files."""
        if not kept:
            for kind in ("jsonl", "safetensors"):
                (self.shards / f"{shard}.{kind}").unlink(missing_ok=True)
            return
        documents = [document for document in read_shard(self.rows_file(shard)) if document.id in kept]
        vectors = {}
        for document in documents:
            with suppress(StoreError):  # what is damaged stays so, and `verify` says it
                vectors[document.id] = self.vectors(document.id, shard)
        self.write_rows(shard, documents)
        self.write_vectors(shard, vectors)

    def outdated(self, listing: Listing) -> list[str]:
        """The ids of stored documents of the same files as these, which are not among them."""
        rows = self.rows.values()
        return [row.id for row in rows if origin(row.source) in listing.origins and row.id not in listing.sources]

    def clean(self):
        """Removes what killed runs left: vectors without rows, and files that were being written."""
        with self.writing():
            for path in self.shards.glob("*.safetensors"):
                remove_left_over(path)
                remove_left_over(path.with_suffix(".jsonl"))
                if path.stem not in self.rows_of:
                    path.unlink()

    def vectors(self, id: str, shard: str | None = None) -> torch.Tensor:
        """The summary vectors of a document, `(vectors, width)`; a `StoreError` if they are not as they were saved."""
        path, row = self.shards / f"{shard or self.shard_of[id]}.safetensors", self.rows[id]
        try:
            with safe_open(path, "pt") as file:
                vectors = file.get_tensor(id)
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{path} is missing or damaged: the vectors of {row.source} are lost.") from error
        if checksum(vectors) != row.sha256:
            raise StoreError(f"{path} is damaged: the SHA-256 of the vectors of {row.source} is another one.")
        return vectors

    def select(self, names: Iterable[str]) -> list[str]:
        """The ids of documents that are named by id or source. A `ValueError` for a name that is not there."""
        ids = []
        for name in names:
            found = [row.id for row in self.rows.values() if name in (row.id, row.source)]
            if not found:
                raise ValueError(f"The store {self.folder} has no document {name!r}.")
            ids += found
        return ids

    def problems(self) -> list[tuple[str | None, str]]:
        """
        What is wrong: the id of a document and a line; no id for files that belong to none.

        What another process is writing looks damaged: where something does, all is read again while none writes.
        """
        found = list(self.seen_problems())
        if found:
            with self.writing():
                found = list(self.seen_problems())
        return found

    def seen_problems(self) -> Iterator[tuple[str | None, str]]:
        for shard, rows in self.rows_of.items():
            for row in rows:
                try:
                    self.vectors(row.id, shard)
                except StoreError as error:
                    yield row.id, str(error)
        for path in sorted(self.shards.glob("*.safetensors")):
            if path.stem not in self.rows_of:
                yield None, f"{path} has no rows: a killed run left it, `store build` or `store add` removes it."

    def facts(self) -> dict[str, Any]:
        """Counts of documents, tokens and vectors, and the bytes of vectors and of texts."""
        rows = self.rows.values()
        tokens, vectors = sum(row.tokens for row in rows), sum(row.vectors for row in rows)
        element = torch.finfo(getattr(torch, self.settings.dtype)).bits // 8
        return {
            "documents": len(rows),
            "tokens": tokens,
            "vectors": vectors,
            "ratio": tokens / vectors if vectors else 0.0,
            "bytes of vectors": vectors * self.settings.width * element,
            "bytes of texts": sum(row.text_bytes for row in rows),
            "shards": len(self.rows_of),
        }


def version(file: Path | int) -> tuple[int, int]:
    """A file, by path or descriptor, by what changes when another takes its place."""
    stat = os.stat(file)
    return stat.st_ino, stat.st_mtime_ns


def origin(source: str) -> str:
    """The file of a source: that of a row without its number."""
    file, colon, number = source.rpartition(":")
    return file if colon and number.isdecimal() else source


def check_types(saved: StoreSettings | StoredDocument):
    """Raises a `TypeError` for a text that is none, or a number that is not 1 or more."""
    for field in fields(saved):
        value = getattr(saved, field.name)
        if not (isinstance(value, str) if field.type is str else isinstance(value, int) and value > 0):
            raise TypeError(f"`{field.name}` cannot be {value!r:.80}")


def read_settings(path: Path) -> StoreSettings:
    """Those of a store; an `OSError` where there is none, which is a `ValueError` too if they are damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no store: it has no {path.name}.")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        found = saved.pop("format", None)
        settings = StoreSettings(**saved)
        check_types(settings)
        torch.finfo(getattr(torch, settings.dtype))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: it does not hold the settings of a store.") from error
    if found != FORMAT:
        raise StoreError(f"{path} has the format {found!r:.80}, it must be {FORMAT!r}.")
    return settings


def read_shard(path: Path, expected: tuple[int, int] | None = None) -> Iterator[StoredDocument]:
    """The rows of a shard, one at a time; a `StoreError` if they are damaged, or no longer of the expected version."""
    changed = StoreError(f"{path} has changed while the store was read: another process writes to it.")
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            if expected not in (None, version(file.fileno())):
                raise changed
            for line in file:
                document = StoredDocument(**json.loads(line))
                check_types(document)
                yield document
    except StoreError:
        raise
    except FileNotFoundError as error:
        if expected is None:
            raise
        raise changed from error
    except (ValueError, TypeError, RecursionError) as error:
        problem = "is damaged: it must hold a row for each document; `store verify --repair` takes it out"
        raise StoreError(f"{path} {problem}.") from error


def take_out_damaged_rows(folder: Path) -> Iterator[str]:
    """Removes the rows of shards that cannot be read, with which no store opens; yields what was wrong."""
    read_settings(Path(folder) / SETTINGS)  # an error for a folder that is no store
    for path in sorted((Path(folder) / "shards").glob("*.jsonl")):
        try:
            deque(read_shard(path), maxlen=0)
        except StoreError as error:
            path.unlink()
            yield str(error)


__all__ = [
    "Document",
    "Listing",
    "StoreError",
    "StoreSettings",
    "StoredDocument",
    "StoredRow",
    "SummaryStore",
    "pick",
    "take_out_damaged_rows",
]

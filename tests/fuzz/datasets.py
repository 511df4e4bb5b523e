"""Damaged files of texts and of tokens, as training and the test sets read them."""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow
from datasets.utils import logging
from hypothesis import strategies as st
from pyarrow import csv, parquet
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from auto_compressor.files.text_streams import stream_rows, tokenize_rows
from auto_compressor.training.arguments import DataTrainingArguments
from auto_compressor.training.data import load_datasets

from .cases import Case, require_right, share
from .mutations import BYTES, OTHER, Mutation, damaged, drawn


BLOCK_SIZE, VOCAB_SIZE = 8, 2048
ROWS = [{"text": f"In the beginning there was a king of {number} lands."} for number in range(40)]
TOKENS = [{"input_ids": [number] * BLOCK_SIZE} for number in range(40)]


def lines(rows: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_parquet(path: Path, rows: list[dict]):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def good_files(folder: Path) -> dict[str, Path]:
    """A file of every kind, by its kind."""
    texts, tokens = pyarrow.Table.from_pylist(ROWS), pyarrow.Table.from_pylist(TOKENS)
    (folder / "text.txt").write_text("\n".join(row["text"] for row in ROWS))
    (folder / "text.jsonl").write_bytes(lines(ROWS))
    (folder / "tokens.jsonl").write_bytes(lines(TOKENS))
    csv.write_csv(texts, folder / "text.csv")
    parquet.write_table(texts, folder / "text.parquet")
    parquet.write_table(tokens, folder / "tokens.parquet")
    return {path.name: path for path in sorted(folder.glob("*.*"))}


def other_rows(data: bytes, draw: random.Random) -> bytes:
    """JSON lines of which one has another field, another value or another form."""
    rows = [json.loads(line) for line in data.splitlines()]
    row = draw.randrange(len(rows))
    name = draw.choice(["text", "input_ids", "labels", "other"])
    rows[row] = draw.choice([{name: draw.choice(OTHER)}, rows[row] | {name: draw.choice(OTHER)}, draw.choice(OTHER)])
    return lines(rows)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))
OBJECTS = st.lists(st.dictionaries(st.sampled_from(["text", "input_ids", "labels"]), VALUES), max_size=4)


def train_on(path: Path, tokenizer: PreTrainedTokenizerBase):
    """Reads a file as training does: blocks of tokens that the model has, all of one length if it makes them."""
    tokenized = path.name.startswith("tokens")
    sources = {"preprocessed_train_datasets" if tokenized else "train_file": [str(path)]}
    options = DataTrainingArguments(validation_split_percentage=0, **sources)
    rows, _ = load_datasets(options, tokenizer, BLOCK_SIZE, str(path.parent / "cache"), vocab_size=VOCAB_SIZE)
    for row in rows:
        ids = row["input_ids"]
        require_right(tokenized or len(ids) == BLOCK_SIZE, f"a row has {len(ids)} tokens")
        require_right(all(0 <= index < VOCAB_SIZE for index in ids), f"a row has the tokens {ids}")


def stream(path: Path, tokenizer: PreTrainedTokenizerBase):
    """Reads a file as the test sets do."""
    for text, ids in tokenize_rows(stream_rows(str(path)), tokenizer):
        require_right(isinstance(ids, list) and (text is None or isinstance(text, str)), f"a row is {text!r}, {ids!r}")


def datasets(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Files of texts and of tokens: refused, or rows that a model can be trained on."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    tokenizer, draw = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER), random.Random(seed)
    (folder / "good").mkdir()
    files = good_files(folder / "good")
    for place, (name, good) in enumerate(files.items()):
        yield from damaged_file(good, folder / name, share(count, place, len(files)), draw, tokenizer)


def damaged_file(
    good: Path, path: Path, count: int, draw: random.Random, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Case]:
    """A good file and damaged ones, read in both ways in turn; of JSON lines, some are made up."""
    is_json, data = good.suffix == ".jsonl", good.read_bytes()
    ways: list[Mutation] = [*BYTES, other_rows, other_rows] if is_json else BYTES
    made_up = [lines(rows) for rows in drawn(OBJECTS, count // 4, draw.randrange(2**32))] if is_json else []
    readers: list[Callable[[Path, PreTrainedTokenizerBase], None]] = [train_on, stream]
    readers = readers[:1] if good.name.startswith("tokens") else readers
    contents = [data] + made_up + [damaged(data, ways, index, draw) for index in range(count - len(made_up))]
    for index, content in enumerate(contents):
        path.write_bytes(content)
        yield Case(good.name, partial(readers[index % len(readers)], path, tokenizer), path, len(content))

"""From text to blocks of tokens: the datasets and the collator of `train.py`.

The text of a source is tokenised, joined into one stream, and cut into blocks of equal length, across the borders of
documents. Datasets that are tokenised already keep their rows.
"""

import glob
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.fingerprint import generate_random_fingerprint
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..files.bundled import BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from ..files.chat_template import has_template, render
from ..files.text_streams import READER_OF_ENDING, reading_rows
from ..tokenization_bytes import ByteTokenizer
from .arguments import DataTrainingArguments


logger = logging.get_logger(__name__)

WIKITEXT, WIKITEXT_CONFIG = "Salesforce/wikitext", "wikitext-103-raw-v1"
WIKITEXT_TITLE = re.compile(r" = [^=].* = \n")
MODEL_COLUMNS = ("input_ids", "attention_mask", "labels")
BLOCK_FEATURES = Features({"input_ids": List(Value("int32"))})
BYTE_FEATURES = Features({"text": Value("large_binary")})
STREAM_SHUFFLE_BUFFER = 1000

AnyDataset = Dataset | IterableDataset
BlockCutter = Callable[[Iterable[dict[str, list[int]]], int], Iterator[dict[str, list[int]]]]


def pack_blocks(examples: Iterable[dict[str, list[int]]], block_size: int) -> Iterator[dict[str, list[int]]]:
    """Joins the `input_ids` of all examples and cuts them into blocks; what is left at the end is dropped."""
    pending: list[int] = []
    for example in examples:
        pending += example["input_ids"]
        whole_length = len(pending) - len(pending) % block_size
        for start in range(0, whole_length, block_size):
            yield {"input_ids": pending[start : start + block_size]}
        pending = pending[whole_length:]


def cut_documents(examples: Iterable[dict[str, list[int]]], block_size: int) -> Iterator[dict[str, list[int]]]:
    """Cuts the `input_ids` of every example into blocks, of which the last may be shorter."""
    for example in examples:
        for start in range(0, len(example["input_ids"]), block_size):
            yield {"input_ids": example["input_ids"][start : start + block_size]}


def as_text(text: Any) -> Any:
    """Bytes as the string that a [`ByteTokenizer`] makes the same bytes of, whatever they are."""
    return text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text


def byte_rows(files: list[tuple[str, int, int]], by_line: bool, keep_linebreaks: bool) -> Iterator[dict[str, bytes]]:
    """The bytes of each file of `file_versions` as they are, in one row or a row per line."""
    for path, *_ in files:
        with open(path, "rb") as file:
            for line in file if by_line else [file.read()]:
                yield {"text": line if keep_linebreaks else line.rstrip(b"\r\n")}


def file_versions(paths: list[str]) -> list[tuple[str, int, int]]:
    """Path, size and time of every file: what is prepared of a file is not used for another version of it."""
    stats = {str(Path(path).resolve()): Path(path).stat() for path in paths}
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]


def read_bytes(paths: list[str], streaming: bool, keep_linebreaks: bool, cache_dir: str | None) -> AnyDataset:
    """Returns txt files as rows of bytes, with every carriage return, and whatever their encoding is."""
    by_line = streaming or not keep_linebreaks
    # A tuple: what is a list, `datasets` takes for shards.
    options = {"files": tuple(file_versions(paths)), "by_line": by_line, "keep_linebreaks": keep_linebreaks}
    if streaming:
        return IterableDataset.from_generator(byte_rows, features=BYTE_FEATURES, gen_kwargs=options)
    return Dataset.from_generator(byte_rows, features=BYTE_FEATURES, cache_dir=cache_dir, gen_kwargs=options)


def is_conversation(text: Any) -> bool:
    """Whether this is a list of messages, each with `role` and `content`."""
    return isinstance(text, list) and all(
        isinstance(part, dict) and {"role", "content"} <= part.keys() for part in text
    )


def write_conversation(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, text_column: str) -> str:
    """Messages in the chat template of the tokenizer; a `ValueError` if it has none, or does not take them."""
    if not has_template(tokenizer):
        raise ValueError(f"--text_column {text_column!r} holds conversations, the tokenizer has no chat template.")
    try:
        return render(tokenizer, messages)
    except ValueError as error:
        raise ValueError(f"--text_column {text_column!r}: {error}") from error


def tokenize_batch(
    examples: dict[str, list], tokenizer: PreTrainedTokenizerBase, text_column: str, add_special_tokens: bool
) -> dict[str, list[list[int]]]:
    """Returns the `input_ids` of every text, conversation or bytes. A `ValueError` if one is something else."""
    texts = [as_text(text) for text in examples[text_column]]
    # A template writes the special tokens of a conversation itself.
    add_special_tokens = add_special_tokens and not any(map(is_conversation, texts))
    for index, text in enumerate(texts):
        if is_conversation(text):
            texts[index] = write_conversation(text, tokenizer, text_column)
        elif not isinstance(text, str):
            raise ValueError(f"--text_column {text_column!r} must hold strings or conversations, got {text!r:.200}.")
    # Documents may be longer than any model reads: they are cut into blocks, so no warning is due.
    return {"input_ids": tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]}


def first_row(dataset: AnyDataset, source: str) -> dict[str, Any]:
    """Returns the first row, whose keys are the columns (a stream knows them only then)."""
    with reading_rows(f"{source} cannot be read"):  # a stream meets malformed files only now
        row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"{source} has no rows.")
    return row


def first_rows(dataset: AnyDataset, num_rows: int | None) -> AnyDataset:
    """Returns the first `num_rows` rows, or all of them for `None`."""
    if num_rows is None:
        return dataset
    return dataset.take(min(num_rows, len(dataset)) if isinstance(dataset, Dataset) else num_rows)


def map_style(dataset: AnyDataset) -> Dataset:
    """Reads a stream to its end, so that the dataset has a length."""
    return dataset if isinstance(dataset, Dataset) else Dataset.from_list(list(dataset))


def tokenize(
    text: AnyDataset, source: str, tokenizer: PreTrainedTokenizerBase, data_args: DataTrainingArguments
) -> AnyDataset:
    """Replaces the columns of `text` by `input_ids`, one row per document. A `ValueError` without a text column."""
    columns = list(first_row(text, source))
    if data_args.text_column not in columns:
        raise ValueError(f"{source} has no column {data_args.text_column!r} (--text_column); it has {columns}.")
    options: dict[str, Any] = {}
    if isinstance(text, Dataset):
        options = {
            "num_proc": data_args.preprocessing_num_workers,
            "load_from_cache_file": not data_args.overwrite_cache,
            "desc": f"Tokenizing {source}, documents",
        }
    batch_args = {
        "tokenizer": tokenizer,
        "text_column": data_args.text_column,
        "add_special_tokens": data_args.add_special_tokens,
    }
    return text.map(tokenize_batch, batched=True, remove_columns=columns, fn_kwargs=batch_args, **options)


def text_to_blocks(
    text: AnyDataset,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    data_args: DataTrainingArguments,
    cache_dir: str | None,
    cut: BlockCutter,
) -> AnyDataset:
    """Returns rows of `block_size` `input_ids`, a stream for a stream. A `ValueError` if there is not a single one."""
    documents = tokenize(text, source, tokenizer, data_args)
    if next(cut(documents, block_size), None) is None:
        num_tokens = sum(len(document["input_ids"]) for document in documents)
        raise ValueError(f"{source} has {num_tokens} tokens, fewer than one block of {block_size} (`block_size`).")
    packing = {"examples": documents, "block_size": block_size}
    if isinstance(text, IterableDataset):
        return IterableDataset.from_generator(cut, features=BLOCK_FEATURES, gen_kwargs=packing)
    fingerprint = generate_random_fingerprint() if data_args.overwrite_cache else None
    return Dataset.from_generator(
        cut, features=BLOCK_FEATURES, cache_dir=cache_dir, gen_kwargs=packing, fingerprint=fingerprint
    )


def named_paths(argument: str, values: list[str]) -> dict[str, str]:
    """Splits `LABEL=PATH`; a path without a label is called by its basename. A `ValueError` for a name met twice."""
    paths: dict[str, str] = {}
    for value in values:
        label, separator, path = value.partition("=")
        if not separator or "/" in label:
            path = value
            label = Path(path).stem if Path(path).suffix.lower() in READER_OF_ENDING else Path(path).name
        if not label or not path:
            raise ValueError(f"{argument} must be PATH or LABEL=PATH, got {value!r}.")
        if label in paths:
            both = f"{paths[label]} and {path}"
            raise ValueError(f"{argument} must have distinct names, got {label!r} for {both}: use LABEL=PATH.")
        paths[label] = path
    return paths


def reader_of(argument: str, paths: list[str]) -> str:
    """Returns the `datasets` reader of files of one kind.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for an empty file, an unknown ending, or endings of more than one kind.
    """
    for path in map(Path, paths):
        if path.suffix.lower() not in READER_OF_ENDING:
            raise ValueError(f"{argument} {str(path)!r} must end in one of {', '.join(READER_OF_ENDING)}.")
        if not path.is_file():
            raise FileNotFoundError(f"{argument} {str(path)!r} is not a file.")
        if path.stat().st_size == 0:
            raise ValueError(f"{argument} {str(path)!r} is empty.")
    readers = {READER_OF_ENDING[Path(path).suffix.lower()] for path in paths}
    if len(readers) > 1:
        raise ValueError(f"{argument} must be files of one kind, got {sorted(readers)} in {paths}.")
    return readers.pop()


def read_files(
    argument: str,
    paths: list[str],
    streaming: bool = False,
    keep_linebreaks: bool = True,
    cache_dir: str | None = None,
    as_bytes: bool = False,
) -> AnyDataset:
    """Returns the rows of all files in turn.

    A txt file is one row, or a row per line where it is streamed or its line ends are dropped; with `as_bytes` its
    bytes, else its text with every line end as `\\n`.

    Raises:
        OSError, ValueError: as `reader_of`; and a `ValueError` for files that do not hold what their ending says.
    """
    reader = reader_of(argument, paths)
    if reader == "text" and as_bytes:
        return read_bytes(paths, streaming, keep_linebreaks, cache_dir)
    options: dict[str, Any] = {}
    if reader == "text":
        sample_by = "document" if keep_linebreaks and not streaming else "line"
        options = {"sample_by": sample_by, "keep_linebreaks": keep_linebreaks}
    elif reader == "csv":
        options = {"keep_default_na": False}  # the word "null" is text
    data_files = {"train": [glob.escape(path) for path in paths]}
    with reading_rows(f"{argument} {paths} cannot be read as {reader}"):
        return load_dataset(
            reader, data_files=data_files, split="train", streaming=streaming, cache_dir=cache_dir, **options
        )


def read_named(argument: str, name: str, config_name: str | None, streaming: bool, cache_dir: str | None) -> dict:
    """Returns the splits of a dataset of the hub or of a folder. One clear `OSError` if it is out of reach."""
    try:
        return load_dataset(name, config_name, streaming=streaming, cache_dir=cache_dir)
    except OSError as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"{argument} {name!r} cannot be loaded: {cause.rstrip('.')}. Local files (--train_file) and the bundled"
            " text (no data arguments) need no hub."
        ) from error


def wikitext_articles(lines: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Joins the rows of WikiText, each a line, to one row per article."""
    article: list[str] = []
    for line in lines:
        if WIKITEXT_TITLE.fullmatch(line["text"]) and any(map(str.strip, article)):
            yield {"text": "".join(article)}
            article = []
        article.append(line["text"])
    yield {"text": "".join(article)}


def join_articles(splits: dict[str, AnyDataset], cache_dir: str | None) -> dict[str, AnyDataset]:
    """The splits of WikiText with one row per article; streams stay streams."""
    joined = {}
    for name, lines in splits.items():
        if isinstance(lines, IterableDataset):
            joined[name] = IterableDataset.from_generator(wikitext_articles, gen_kwargs={"lines": lines})
        else:
            joined[name] = Dataset.from_generator(wikitext_articles, cache_dir=cache_dir, gen_kwargs={"lines": lines})
    return joined


def with_wikitext(data_args: DataTrainingArguments, cache_dir: str | None) -> DataTrainingArguments:
    """Names WikiText-103 where no data is named; the bundled text, with a warning, if the hub is out of reach."""
    if any(data_sources(data_args).values()):
        return data_args
    try:
        read_named("--dataset_name", WIKITEXT, WIKITEXT_CONFIG, data_args.streaming, cache_dir)
    except OSError as error:
        logger.warning("No WikiText-103, the bundled text is used: %s", error.__cause__)
        return data_args
    return replace(data_args, dataset_name=WIKITEXT, dataset_config_name=WIKITEXT_CONFIG)


def read_tokenized(
    argument: str,
    name: str,
    splits: tuple[str, ...],
    streaming: bool,
    cache_dir: str | None,
    vocab_size: int | None = None,
) -> AnyDataset:
    """Returns the model's columns of a `save_to_disk` folder, a parquet or jsonl file, or a dataset of the hub.

    Of several splits it takes the first of `splits` that there is.

    Raises:
        ValueError: without a column `input_ids`, if there are several splits and none of `splits`, or for ids that
            are not below `vocab_size`.
    """
    if Path(name).is_file() or Path(name).suffix.lower() in READER_OF_ENDING:
        dataset = read_files(argument, [name], streaming, cache_dir=cache_dir)
    elif (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
        dataset = load_from_disk(name)
    else:
        dataset = read_named(argument, name, None, streaming, cache_dir)
    source = f"{argument} {name!r}"
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        found = [split for split in splits if split in dataset] or list(dataset)
        if found[0] not in splits and len(dataset) > 1:
            raise ValueError(
                f"{source} must have a split {' or '.join(splits)}, or a single one, got {list(dataset)}."
            )
        dataset = dataset[found[0]]
    columns = first_row(dataset, source)
    if "input_ids" not in columns:
        raise ValueError(f"{source} must have a column 'input_ids', got {list(columns)}.")
    dataset = dataset.select_columns([column for column in MODEL_COLUMNS if column in columns])
    if streaming and isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()
    return within_vocabulary(dataset, source, vocab_size)


def check_ids(rows: dict[str, list], source: str, vocab_size: int) -> dict[str, list]:
    """
    Returns rows as they are.

    Raises:
        ValueError: for what is no list of ids, or an id that a model with so many tokens has no embedding of.
    """
    for column, least in (("input_ids", 0), ("labels", -100)):
        for row in rows.get(column, ()):
            if not isinstance(row, list) or not set(map(type, row)) <= {int}:
                raise ValueError(f"{source} must have lists of token ids as its {column}, a row has {row!r:.80}.")
        ids = [index for row in rows.get(column, ()) for index in row]
        if ids and not least <= min(ids) <= max(ids) < vocab_size:
            wrong = max(ids) if max(ids) >= vocab_size else min(ids)
            raise ValueError(
                f"{source} must be tokenised for the vocabulary of the model, {vocab_size} ids, its {column} have"
                f" {wrong}."
            )
    return rows


def within_vocabulary(dataset: AnyDataset, source: str, vocab_size: int | None) -> AnyDataset:
    """Checks the ids of a dataset: all of one in memory, those of a stream when they are read."""
    if vocab_size is None:
        return dataset
    options = {"source": source, "vocab_size": vocab_size}
    if isinstance(dataset, IterableDataset):
        check_ids({column: [row] for column, row in first_row(dataset, source).items()}, **options)
        return dataset.map(check_ids, batched=True, fn_kwargs=options)
    for rows in dataset.iter(batch_size=1000):
        check_ids(rows, **options)
    return dataset


def load_tokenized(
    data_args: DataTrainingArguments, cache_dir: str | None, vocab_size: int | None = None
) -> tuple[AnyDataset | None, dict[str, AnyDataset]]:
    """Returns the tokenised training sets as one, and the validation sets by name."""
    argument = "--preprocessed_train_datasets"
    names = data_args.preprocessed_train_datasets
    options = (data_args.streaming, cache_dir, vocab_size)
    parts = [read_tokenized(argument, name, ("train",), *options) for name in names]
    if len({tuple(sorted(first_row(part, argument))) for part in parts}) > 1:
        raise ValueError(f"{argument} must all have the same of the columns {MODEL_COLUMNS}, {names} differ.")
    argument = "--preprocessed_validation_datasets"
    validation = {
        label: read_tokenized(argument, name, ("validation", "test"), False, cache_dir, vocab_size)
        for label, name in named_paths(argument, data_args.preprocessed_validation_datasets).items()
    }
    return (concatenate_datasets(parts) if parts else None), validation


def read_text(
    data_args: DataTrainingArguments, cache_dir: str | None, as_bytes: bool = False
) -> tuple[AnyDataset | None, dict[str, AnyDataset]]:
    """Returns the training text and the validation texts by name, from a dataset, files (as bytes), or the package."""
    if data_args.dataset_name is not None:
        argument, name, config_name = "--dataset_name", data_args.dataset_name, data_args.dataset_config_name
        splits = read_named(argument, name, config_name, data_args.streaming, cache_dir)
        if "train" not in splits and "validation" not in splits:
            raise ValueError(f"{argument} {name!r} must have a split 'train' or 'validation', got {list(splits)}.")
        if name == WIKITEXT:
            splits = join_articles(splits, cache_dir)
        return splits.get("train"), {name: text for name, text in splits.items() if name == "validation"}
    train_files, validation_files = data_args.train_file, data_args.validation_file
    if not train_files and not validation_files:
        train_files, validation_files = [str(BUNDLED_TRAIN_TEXT)], [str(BUNDLED_VALIDATION_TEXT)]
    train = None
    if train_files:
        options = (data_args.keep_linebreaks, cache_dir, as_bytes)
        train = read_files("--train_file", train_files, data_args.streaming, *options)
    argument = "--validation_file"
    validation = {
        label: read_files(argument, [path], False, data_args.keep_linebreaks, cache_dir, as_bytes)
        for label, path in named_paths(argument, validation_files).items()
    }
    return train, validation


def hold_out(train: Dataset, percentage: float) -> tuple[Dataset, dict[str, Dataset]]:
    """Takes `percentage` of the rows, at least one, from the end of `train` as the set `validation`."""
    if percentage == 0:
        return train, {}
    num_held_out = max(1, round(len(train) * percentage / 100))
    num_kept = len(train) - num_held_out
    if num_kept < 1:
        raise ValueError(
            f"The training set has {len(train)} rows, too few to hold out --validation_split_percentage {percentage}:"
            " give a validation set, or 0."
        )
    return train.select(range(num_kept)), {"validation": train.select(range(num_kept, len(train)))}


def data_sources(data_args: DataTrainingArguments) -> dict[str, str | list[str] | None]:
    """The kinds of sources, by their arguments, and what is named of each."""
    return {
        "--dataset_name": data_args.dataset_name,
        "--train_file / --validation_file": data_args.train_file or data_args.validation_file,
        "--preprocessed_train_datasets / --preprocessed_validation_datasets": (
            data_args.preprocessed_train_datasets or data_args.preprocessed_validation_datasets
        ),
    }


def check_data_arguments(data_args: DataTrainingArguments, block_size: int):
    """Raises a `ValueError` for a number out of range, and for more than one kind of source."""
    given = [kind for kind, value in data_sources(data_args).items() if value]
    if len(given) > 1:
        raise ValueError(f"At most one kind of data source may be given, got {' and '.join(given)}.")
    if data_args.dataset_config_name and not data_args.dataset_name:
        raise ValueError(f"--dataset_config_name {data_args.dataset_config_name!r} needs --dataset_name.")
    if not 0 <= data_args.validation_split_percentage < 100:
        percentage = data_args.validation_split_percentage
        raise ValueError(f"--validation_split_percentage must be at least 0 and below 100, got {percentage}.")
    numbers = {
        "block_size": block_size,
        "--max_train_samples": data_args.max_train_samples,
        "--max_eval_samples": data_args.max_eval_samples,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}.")


def load_datasets(
    data_args: DataTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    cache_dir: str | None = None,
    seed: int = 42,
    cut: BlockCutter = pack_blocks,
    vocab_size: int | None = None,
) -> tuple[AnyDataset | None, dict[str, Dataset]]:
    """
    Loads the training set and the validation sets. The same call gives the same rows in the same order.

    Args:
        data_args (`DataTrainingArguments`): At most one kind of source; without any, the bundled text.
        tokenizer (`PreTrainedTokenizerBase`): Makes tokens of text; datasets that are tokenised already do without.
        block_size (`int`): Tokens per row; the rows of tokenised datasets keep their lengths.
        cache_dir (`str`, *optional*): Folder for what is downloaded and prepared.
        seed (`int`, defaults to 42): Order of a streamed training set, which is shuffled within a buffer of
            1000 rows. A training set in memory is in the order of the text: the sampler of the trainer shuffles it.
        cut (`Callable`, defaults to `pack_blocks`): Makes blocks of documents, across their borders (`pack_blocks`) or
            within them (`cut_documents`).
        vocab_size (`int`, *optional*): Vocabulary of the model; the ids of tokenised datasets must be below it.

    Returns:
        `tuple`: The training set (`None` if there are only validation sets) and the validation sets by name. Rows hold
        `input_ids`, a list of `block_size` ints; those of tokenised datasets also their `attention_mask` and `labels`.
        Without a validation set, the end of the training set is held out, unless that is a stream.

    Raises:
        ValueError: for sources of several kinds, for files, columns or numbers that do not fit, or for a text shorter
            than one block.
        OSError: for a missing file (`FileNotFoundError`), or a dataset that cannot be reached.
    """
    check_data_arguments(data_args, block_size)
    if data_args.preprocessed_train_datasets or data_args.preprocessed_validation_datasets:
        train, validation = load_tokenized(data_args, cache_dir, vocab_size)
    else:
        train, validation = read_text(data_args, cache_dir, as_bytes=isinstance(tokenizer, ByteTokenizer))
        common = (tokenizer, block_size, data_args, cache_dir, cut)
        train = None if train is None else text_to_blocks(train, "The training text", *common)
        validation = {
            name: text_to_blocks(text, f"The validation text {name!r}", *common) for name, text in validation.items()
        }
    if isinstance(train, Dataset) and not validation:
        train, validation = hold_out(train, data_args.validation_split_percentage)
    if train is not None:
        train = first_rows(train, data_args.max_train_samples)
    if isinstance(train, IterableDataset):
        train = train.shuffle(seed=seed, buffer_size=STREAM_SHUFFLE_BUFFER)
    return train, {name: map_style(first_rows(rows, data_args.max_eval_samples)) for name, rows in validation.items()}


def complete_row(feature: dict[str, Any]) -> dict[str, torch.LongTensor]:
    """Returns all of `MODEL_COLUMNS`, each `(length,)`. A `ValueError` if their lengths differ."""
    row = {
        column: torch.as_tensor(feature[column], dtype=torch.long)
        for column in MODEL_COLUMNS
        if feature.get(column) is not None
    }
    row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
    lengths = {column: len(values) for column, values in row.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of a row must be of one length, got {lengths}.")
    row.setdefault("labels", row["input_ids"].masked_fill(row["attention_mask"] == 0, -100))
    return row


@dataclass
class DataCollator:
    """
    Pads rows of tokens to the longest and makes a batch of them.

    Args:
        pad_token_id (`int`): Token that fills `input_ids`.
        padding_side (`str`, defaults to `"right"`): `"right"` or `"left"`.
    """

    pad_token_id: int
    padding_side: str = "right"

    def __post_init__(self):
        if not isinstance(self.pad_token_id, int):
            raise ValueError(f"`pad_token_id` must be an int, got {self.pad_token_id!r}: give the tokenizer one.")
        if self.padding_side not in ("right", "left"):
            raise ValueError(f"`padding_side` must be 'right' or 'left', got {self.padding_side!r}.")

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.LongTensor]:
        """Returns `input_ids`, `attention_mask` (0 at padding) and `labels` (-100 at padding), all `(batch, longest)`.

        A row keeps its own `attention_mask` and `labels`. Without them all its tokens are attended to, and every token
        that is attended to is a label. Other columns are dropped.
        """
        rows = [complete_row(feature) for feature in features]
        longest = max(len(row["input_ids"]) for row in rows)
        fillings = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": -100}
        return {
            column: torch.stack([self._pad(row[column], longest, filling) for row in rows])
            for column, filling in fillings.items()
        }

    def _pad(self, row: torch.LongTensor, length: int, filling: int) -> torch.LongTensor:
        missing = length - len(row)
        return F.pad(row, (0, missing) if self.padding_side == "right" else (missing, 0), value=filling)


__all__ = ["DataCollator", "cut_documents", "load_datasets", "pack_blocks", "with_wikitext"]

"""The data pipeline: every kind of source, packing, hold-out, the collator, and the bundled text and tokenizer."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from args import DataTrainingArguments
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from data import DataCollator, load_datasets, pack_blocks


TEXTS = [f"Document {i}: " + "the king went up to the city, and returned.\n" * (i + 1) for i in range(12)]
BLOCK = 16


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


@pytest.fixture
def load(tmp_path, tokenizer):
    """`load_datasets` on the bundled tokenizer, with its cache in the test's own folder."""

    def load(block_size=BLOCK, **kwargs):
        return load_datasets(DataTrainingArguments(**kwargs), tokenizer, block_size, str(tmp_path / "cache"))

    return load


def tokens_of(texts, tokenizer, **kwargs):
    kwargs = {"add_special_tokens": False} | kwargs
    return [token for text in texts for token in tokenizer(text, **kwargs)["input_ids"]]


def flatten(rows):
    return [token for row in rows for token in row["input_ids"]]


def whole_blocks(tokens, block_size=BLOCK):
    return tokens[: len(tokens) - len(tokens) % block_size]


def write_file(path: Path, texts, column="text"):
    if path.suffix == ".txt":
        path.write_bytes("".join(texts).encode())
    elif path.suffix == ".json":
        path.write_text(json.dumps([{column: text, "other": 1} for text in texts]))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    elif path.suffix == ".csv":
        Dataset.from_dict({column: texts}).to_csv(path)
    else:
        Dataset.from_dict({column: texts}).to_parquet(path)
    return str(path)


# Packing


@given(
    st.lists(st.lists(st.integers(0, 99), max_size=40), max_size=12),
    st.integers(1, 17),
)
@settings(max_examples=200, deadline=None)
def test_blocks_are_a_prefix_of_the_joined_tokens(documents, block_size):
    blocks = [block["input_ids"] for block in pack_blocks([{"input_ids": ids} for ids in documents], block_size)]
    tokens = [token for ids in documents for token in ids]
    assert all(len(block) == block_size for block in blocks)
    joined = [token for block in blocks for token in block]
    assert joined == tokens[: len(joined)]
    assert len(tokens) - len(joined) < block_size


# Files


@pytest.mark.parametrize("ending", ["txt", "json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_file_format(ending, streaming, tmp_path, load, tokenizer):
    files = [write_file(tmp_path / f"{i}.{ending}", texts) for i, texts in enumerate([TEXTS[:5], TEXTS[5:]])]
    train, validation = load(train_file=files, streaming=streaming, validation_split_percentage=0)
    assert isinstance(train, IterableDataset if streaming else Dataset) and validation == {}
    expected = whole_blocks(tokens_of(TEXTS, tokenizer))
    rows = list(train)
    assert all(list(row) == ["input_ids"] and len(row["input_ids"]) == BLOCK for row in rows)
    if streaming:  # shuffled in a buffer
        blocks = [expected[start : start + BLOCK] for start in range(0, len(expected), BLOCK)]
        assert sorted(row["input_ids"] for row in rows) == sorted(blocks)
    else:
        assert flatten(rows) == expected


@pytest.mark.parametrize("name", ["a[1]*.txt", "b # 20%.txt"])
def test_file_names_are_taken_literally(name, tmp_path, load, tokenizer):
    write_file(tmp_path / "a1.txt", ["wrong"] * BLOCK)
    train, _ = load(train_file=[write_file(tmp_path / name, TEXTS)], validation_split_percentage=0)
    assert flatten(train) == whole_blocks(tokens_of(TEXTS, tokenizer))


def test_text_column_may_have_another_name(tmp_path, load, tokenizer):
    file = write_file(tmp_path / "a.jsonl", TEXTS, column="body")
    train, _ = load(train_file=[file], text_column="body", validation_split_percentage=0)
    assert flatten(train) == whole_blocks(tokens_of(TEXTS, tokenizer))


def test_csv_cells_that_look_like_nothing_are_text(tmp_path, load, tokenizer):
    texts = ["null", "NA", "", "None"] * BLOCK
    train, _ = load(train_file=[write_file(tmp_path / "a.csv", texts)], validation_split_percentage=0)
    assert flatten(train) == whole_blocks(tokens_of(texts, tokenizer))


def test_line_ends_are_kept_or_dropped(tmp_path, load, tokenizer):
    file = write_file(tmp_path / "a.txt", ["one two\n", "\n", "three\n"] * 20)
    kept, _ = load(block_size=1, train_file=[file], validation_split_percentage=0)
    assert tokenizer.decode(flatten(kept)) == "one two\n\nthree\n" * 20
    dropped, _ = load(block_size=1, train_file=[file], validation_split_percentage=0, keep_linebreaks=False)
    assert tokenizer.decode(flatten(dropped)) == "one twothree" * 20


def test_special_tokens_only_on_request(tmp_path, load, tokenizer):
    file = write_file(tmp_path / "a.jsonl", TEXTS)
    plain, _ = load(block_size=1, train_file=[file], validation_split_percentage=0)
    assert tokenizer.bos_token_id not in flatten(plain)
    special, _ = load(block_size=1, train_file=[file], validation_split_percentage=0, add_special_tokens=True)
    assert flatten(special) == tokens_of(TEXTS, tokenizer, add_special_tokens=True)
    assert flatten(special).count(tokenizer.bos_token_id) == len(TEXTS)


def test_changed_file_is_read_again(tmp_path, load, tokenizer):
    for texts in (TEXTS[:4], TEXTS[4:]):
        train, _ = load(train_file=[write_file(tmp_path / "a.txt", texts)], validation_split_percentage=0)
        assert flatten(train) == whole_blocks(tokens_of(texts, tokenizer))


def test_workers_and_a_new_cache_do_not_change_the_rows(tmp_path, load):
    file = write_file(tmp_path / "a.jsonl", TEXTS)
    train, _ = load(train_file=[file])
    assert load(train_file=[file], preprocessing_num_workers=2)[0][:] == train[:]
    assert load(train_file=[file], overwrite_cache=True)[0][:] == train[:]


def test_second_process_finds_the_cache(tmp_path, load):
    file = write_file(tmp_path / "a.jsonl", TEXTS)
    train, _ = load(train_file=[file])
    arrow_files = sorted((tmp_path / "cache").rglob("*.arrow"))
    script = (
        "from args import DataTrainingArguments as A; from data import load_datasets; import sys;"
        "from transformers import AutoTokenizer as T;"
        "print(len(load_datasets(A(train_file=[sys.argv[1]]), T.from_pretrained(sys.argv[2]), 16, sys.argv[3])[0]))"
    )
    arguments = [sys.executable, "-c", script, file, str(BUNDLED_TOKENIZER), str(tmp_path / "cache")]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    output = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout
    assert int(output) == len(train)
    assert sorted((tmp_path / "cache").rglob("*.arrow")) == arrow_files


def test_long_documents_do_not_warn(tmp_path, load, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", 8)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    load(train_file=[write_file(tmp_path / "a.txt", TEXTS)])
    assert "longer than" not in caplog.text


# Validation sets, limits, order


def test_held_out_rows_are_the_end_of_the_text(tmp_path, load, tokenizer):
    file = write_file(tmp_path / "a.txt", TEXTS)
    train, validation = load(train_file=[file], validation_split_percentage=25)
    expected = whole_blocks(tokens_of(["".join(TEXTS)], tokenizer))
    num_blocks = len(expected) // BLOCK
    assert list(validation) == ["validation"] and len(validation["validation"]) == round(num_blocks * 0.25)
    assert flatten(train) + flatten(validation["validation"]) == expected


def test_limits(tmp_path, load):
    file = write_file(tmp_path / "a.txt", TEXTS)
    train, validation = load(train_file=[file], validation_split_percentage=25)
    few_train, few_validation = load(
        train_file=[file], validation_split_percentage=25, max_train_samples=3, max_eval_samples=2
    )
    assert few_train[:] == train[:3] and few_validation["validation"][:] == validation["validation"][:2]
    all_train, _ = load(train_file=[file], validation_split_percentage=25, max_train_samples=10**6)
    assert all_train[:] == train[:]
    stream, _ = load(train_file=[file], streaming=True, max_train_samples=3)
    assert sorted(flatten(stream)) == sorted(flatten(train.select(range(3))))


def test_several_named_validation_sets(tmp_path, load, tokenizer):
    files = {name: write_file(tmp_path / name, TEXTS[i:]) for i, name in enumerate(["a.txt", "b.jsonl", "c.d.csv"])}
    train, validation = load(validation_file=[files["a.txt"], "second=" + files["b.jsonl"], files["c.d.csv"]])
    assert train is None and list(validation) == ["a", "second", "c.d"]
    assert flatten(validation["second"]) == whole_blocks(tokens_of(TEXTS[1:], tokenizer))


def test_equals_sign_in_a_folder_is_not_a_label(tmp_path, load):
    (tmp_path / "year=2020").mkdir()
    _, validation = load(validation_file=[write_file(tmp_path / "year=2020" / "a.txt", TEXTS)])
    assert list(validation) == ["a"]


def test_streams_have_no_held_out_set_but_take_files(tmp_path, load):
    file = write_file(tmp_path / "a.txt", TEXTS)
    assert load(train_file=[file], streaming=True)[1] == {}
    _, validation = load(train_file=[file], validation_file=["v=" + file], streaming=True)
    assert isinstance(validation["v"], Dataset)


def test_streams_repeat_and_depend_on_the_seed(tmp_path, tokenizer):
    data_args = DataTrainingArguments(train_file=[write_file(tmp_path / "a.txt", TEXTS)], streaming=True)
    first, again, other = (
        flatten(load_datasets(data_args, tokenizer, BLOCK, str(tmp_path), seed)[0]) for seed in (1, 1, 2)
    )
    assert first == again and first != other and sorted(first) == sorted(other)


# Datasets by name


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_by_name(streaming, tmp_path, load, tokenizer):
    (tmp_path / "set").mkdir()
    write_file(tmp_path / "set" / "train.jsonl", TEXTS[:8])
    write_file(tmp_path / "set" / "validation.jsonl", TEXTS[8:])
    train, validation = load(dataset_name=str(tmp_path / "set"), streaming=streaming)
    assert isinstance(train, IterableDataset if streaming else Dataset)
    assert sorted(flatten(train)) == sorted(whole_blocks(tokens_of(TEXTS[:8], tokenizer)))
    assert list(validation) == ["validation"] and isinstance(validation["validation"], Dataset)
    assert flatten(validation["validation"]) == whole_blocks(tokens_of(TEXTS[8:], tokenizer))


def test_folder_without_validation_is_split(tmp_path, load):
    (tmp_path / "set").mkdir()
    write_file(tmp_path / "set" / "train.jsonl", TEXTS)
    train, validation = load(dataset_name=str(tmp_path / "set"), validation_split_percentage=50)
    assert abs(len(train) - len(validation["validation"])) <= 1


def test_unreachable_hub_gives_one_clear_line(load, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for argument in ("dataset_name", "preprocessed_train_datasets"):
        value = "nobody/nothing" if argument == "dataset_name" else ["nobody/nothing"]
        with pytest.raises(OSError, match=rf"--{argument} 'nobody/nothing' .*--train_file.*bundled text") as error:
            load(**{argument: value})
        assert "\n" not in str(error.value) and isinstance(error.value.__cause__, OSError)


# Tokenised datasets

ROWS = {
    "input_ids": [[i, i + 1, i + 2] for i in range(8)],
    "labels": [[-100, i + 1, i + 2] for i in range(8)],
    "attention_mask": [[0, 1, 1]] * 8,
    "note": ["x"] * 8,
}


def save_tokenized(path: Path, rows):
    dataset = Dataset.from_dict(rows)
    if path.suffix == ".parquet":
        dataset.to_parquet(path)
    elif path.suffix == ".jsonl":
        dataset.to_json(path)
    else:
        dataset.save_to_disk(path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "streaming"),
    [
        ("rows", False),
        ("rows.parquet", False),
        ("rows.jsonl", False),
        ("rows", True),
        ("rows.jsonl", True),
    ],
)
def test_tokenized_rows_are_kept(name, streaming, tmp_path, load):
    path = save_tokenized(tmp_path / name, ROWS)
    train, validation = load(
        preprocessed_train_datasets=[path, path],
        preprocessed_validation_datasets=[path, "again=" + path],
        streaming=streaming,
    )
    assert list(validation) == ["rows", "again"]
    expected = Dataset.from_dict(ROWS).remove_columns("note").to_list()
    assert sorted(train, key=str) == sorted(expected * 2, key=str)
    assert validation["again"].to_list() == expected


def test_tokenized_train_is_split_and_folders_of_splits_are_read(tmp_path, load):
    rows = Dataset.from_dict({"input_ids": ROWS["input_ids"]})
    DatasetDict(train=rows, validation=rows.select([0])).save_to_disk(tmp_path / "both")
    both = str(tmp_path / "both")
    train, validation = load(preprocessed_train_datasets=[both], validation_split_percentage=25)
    assert train["input_ids"][:] + validation["validation"]["input_ids"][:] == ROWS["input_ids"]
    _, validation = load(preprocessed_validation_datasets=[both])
    assert validation["both"]["input_ids"][:] == ROWS["input_ids"][:1]


# Bad input


def bad_file(name, content):
    return lambda tmp_path: {"train_file": [str((tmp_path / name).write_bytes(content) and tmp_path / name)]}


BAD_INPUT = {
    "two kinds": (
        lambda tmp_path: {"dataset_name": "a", "train_file": ["b.txt"]},
        ValueError,
        "--dataset_name and --train_file",
    ),
    "config alone": (lambda tmp_path: {"dataset_config_name": "a"}, ValueError, "needs --dataset_name"),
    "missing": (lambda tmp_path: {"train_file": ["no.txt"]}, FileNotFoundError, "--train_file 'no.txt'"),
    "ending": (bad_file("a.docx", b"x"), ValueError, "a.docx' must end in one of .txt"),
    "no json": (bad_file("a.jsonl", b"{not json"), ValueError, "cannot be read as json"),
    "not UTF-8": (bad_file("a.txt", b"\xff\xfe\xfa"), ValueError, "cannot be read as text.*utf-8"),
    "no column": (bad_file("a.jsonl", b'{"body": "x"}\n'), ValueError, r"'text' \(--text_column\).*body"),
    "no string": (
        bad_file("a.jsonl", b'{"text": "x"}\n{"text": null}\n'),
        ValueError,
        "strings or conversations, got None",
    ),
    "too short": (bad_file("a.txt", b"one two"), ValueError, "has 2 tokens, fewer than one block of 16"),
    "no zip": (bad_file("a.txt", b"PK\x03\x04" + bytes(50)), ValueError, "cannot be read as text: File is not a zip"),
    "no row": (bad_file("a.csv", b"text\n"), ValueError, "--train_file .*a.csv.* cannot be read as csv"),
    "percentage": (lambda tmp_path: {"validation_split_percentage": 100}, ValueError, "below 100, got 100"),
    "limit": (lambda tmp_path: {"max_train_samples": 0}, ValueError, "--max_train_samples must be 1 or more"),
    "block size": (lambda tmp_path: {"block_size": 0}, ValueError, "block_size must be 1 or more, got 0"),
    "same names": (
        lambda tmp_path: {"validation_file": ["x/a.txt", "y/a.txt"]},
        ValueError,
        "distinct names, got 'a' for x/a.txt and y/a.txt",
    ),
    "no label": (lambda tmp_path: {"validation_file": ["=a.txt"]}, ValueError, "LABEL=PATH, got '=a.txt'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case, tmp_path, load):
    arguments, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        load(**arguments(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["input_ids", "labels"])
@pytest.mark.parametrize("value", [None, True, "text", [[1]], [0.5], [None]])
def test_rows_that_are_no_tokens(column, value, streaming, tmp_path):
    row = {"input_ids": [1, 2], "labels": [1, 2]} | {column: value}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    options = DataTrainingArguments(preprocessed_train_datasets=[str(tmp_path / "a.jsonl")], streaming=streaming)
    with pytest.raises(ValueError, match=f"must have lists of token ids as its {column}, a row has"):
        load_datasets(options, None, BLOCK, str(tmp_path / "cache"), vocab_size=9)


def test_bad_files(tmp_path, load):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="empty.txt' is empty"):
        load(train_file=[str(tmp_path / "empty.txt")])
    files = [write_file(tmp_path / name, TEXTS) for name in ("a.txt", "b.jsonl")]
    with pytest.raises(ValueError, match="of one kind, got .'json', 'text'"):
        load(train_file=files)
    with pytest.raises(ValueError, match=r"'text' \(--text_column\)"):
        load(train_file=[write_file(tmp_path / "c.jsonl", TEXTS, column="body")], streaming=True)
    (tmp_path / "d.jsonl").write_text("{not json")
    with pytest.raises(ValueError, match="The training text cannot be read: JSON"):
        load(train_file=[str(tmp_path / "d.jsonl")], streaming=True)
    with pytest.raises(ValueError, match="1 rows, too few to hold out"):
        load(train_file=files[:1], block_size=len("".join(TEXTS)) // 4)


def test_bad_tokenized_datasets(tmp_path, load):
    with pytest.raises(ValueError, match="must have a column 'input_ids', got .'text'"):
        load(preprocessed_train_datasets=[write_file(tmp_path / "a.jsonl", TEXTS)])
    with pytest.raises(FileNotFoundError, match="no.parquet"):
        load(preprocessed_train_datasets=["no.parquet"])
    whole = save_tokenized(tmp_path / "whole", ROWS)
    part = save_tokenized(tmp_path / "part", {"input_ids": ROWS["input_ids"]})
    with pytest.raises(ValueError, match="must all have the same"):
        load(preprocessed_train_datasets=[whole, part])
    rows = Dataset.from_dict(ROWS)
    DatasetDict(a=rows, b=rows).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="split train, or a single one, got .'a', 'b'"):
        load(preprocessed_train_datasets=[str(tmp_path / "splits")])


# Collator


def test_collator_pads_and_makes_labels():
    features = [{"input_ids": [5, 6, 7], "note": "dropped"}, {"input_ids": [8]}]
    batch = DataCollator(pad_token_id=0)(features)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[5, 6, 7], [8, -100, -100]],
    }
    assert all(tensor.dtype == torch.long for tensor in batch.values())
    left = DataCollator(pad_token_id=0, padding_side="left")(features)
    assert left["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left["labels"].tolist() == [[5, 6, 7], [-100, -100, 8]]


def test_collator_keeps_labels_and_masks():
    features = [
        {"input_ids": [5, 6], "attention_mask": [0, 1], "labels": [5, -100]},
        {"input_ids": torch.tensor([5, 6, 7]), "attention_mask": [0, 1, 1]},
    ]
    batch = DataCollator(pad_token_id=9)(features)
    assert batch["input_ids"].tolist() == [[5, 6, 9], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert batch["labels"].tolist() == [[5, -100, -100], [-100, 6, 7]]


def test_collator_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="of one length, got .'input_ids': 2, 'labels': 1"):
        DataCollator(0)([{"input_ids": [1, 2], "labels": [1]}])
    with pytest.raises(ValueError, match="`pad_token_id` must be an int, got None"):
        DataCollator(None)
    with pytest.raises(ValueError, match="`padding_side` must be .*got 'both'"):
        DataCollator(0, "both")


# What comes with the package


def word_sequences(path, length=12):
    words = re.findall(r"[a-z']+", path.read_text(encoding="utf-8").lower())
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def test_bundled_texts():
    train, validation = (path.read_bytes() for path in (BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT))
    assert 1.0e6 < len(train) < 1.2e6 and 1.3e5 < len(validation) < 2.0e5
    assert train.startswith(b"Genesis 1\nIn the beginning God created") and b"\n\nMatthew 5\n" in train
    for text in (train, validation):
        chapters = text.decode("ascii").removesuffix("\n").split("\n\n")
        assert all(re.fullmatch(r"(\d )?[A-Z][a-z]+ \d+\n[A-Za-z\"'(].{200,}", chapter) for chapter in chapters)
        assert not re.search(r"[][{}<>\r\t]|  | [,.;:?!]", text.decode())


def test_bundled_validation_text_is_not_in_the_training_text():
    train = set(word_sequences(BUNDLED_TRAIN_TEXT))
    validation = word_sequences(BUNDLED_VALIDATION_TEXT)
    assert sum(sequence in train for sequence in validation) < 0.001 * len(validation)


def test_bundled_text_is_the_default(load, tokenizer):
    train, validation = load(block_size=512)
    assert list(validation) == ["validation"]
    text = BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8")
    assert flatten(validation["validation"]) == whole_blocks(tokens_of([text], tokenizer), 512)
    assert len(train) == 288312 // 512


def test_bundled_text_streams_alike(load):
    train, _ = load(block_size=512)
    stream, validation = load(block_size=512, streaming=True)
    assert sorted(row["input_ids"] for row in stream) == sorted(row["input_ids"] for row in train)
    assert isinstance(validation["validation"], Dataset)


def test_bundled_tokenizer(tokenizer):
    assert len(tokenizer) == 2048
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert special == [0, 1, 2] and tokenizer.unk_token is None
    assert tokenizer("a")["input_ids"] == [1, *tokenizer("a", add_special_tokens=False)["input_ids"]]
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
@settings(max_examples=200, deadline=None)
def test_bundled_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_bundled_tokenizer_keeps_spaces_before_punctuation(tokenizer):
    text = " It 's  here , <s>is it not ?\r\n\tYes .</s> "
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text

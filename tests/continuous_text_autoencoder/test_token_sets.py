"""Token statistics, the filter for test sets, random test sets, and the texts they are made of."""

import csv
import json
from collections import Counter
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from auto_compressor.cli.main import main
from auto_compressor.continuous_text_autoencoder.token_sets import (
    KEPT,
    LOW_FREQUENCY,
    TOO_SHORT,
    UNSEEN,
    filter_sequences,
    frequent_tokens,
    low_frequency_threshold,
    random_sequences,
    read_statistics,
    token_statistics,
    write_statistics,
    write_test_set,
)
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.files.text_streams import stream_rows, tokenize_rows


FIXTURES = Path(__file__).parents[1] / "fixtures" / "continuous_text"
FILTER_CASES = json.loads((FIXTURES / "cases.json").read_text())["filter_cases"]
TEXTS = ["In the beginning\n", ' God created, "quoted" and so on ', "null", "na\u00efve \u4e2d\n\nend"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def error_line(captured) -> str:
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("auto-compressor: error: "), captured.err
    return lines[0]


# Published numbers


@pytest.mark.parametrize("case", FILTER_CASES)
def test_the_filter_is_the_published_one(case):
    counts = {row["token_id"]: row["count"] for row in case["stats"]}
    fraction, length = case["low_fraction"], case["target_length"]
    assert low_frequency_threshold(counts, fraction) == case["threshold"]
    assert frequent_tokens(counts, fraction) == case["sampling_pool"]
    assert sorted(counts.keys() - set(frequent_tokens(counts, fraction))) == case["low_frequency_tokens"]
    sequences = [sequence["token_ids"] for sequence in case["sequences"]]
    judged = list(filter_sequences(sequences, counts, length, fraction))
    assert [outcome == KEPT for outcome, _ in judged] == [sequence["keep"] for sequence in case["sequences"]]
    assert {len(ids) for ids in sequences} == {length, length - 1}  # so that windows are whole texts
    assert [window for _, window in judged] == sequences
    assert {outcome for outcome, _ in judged} == {KEPT, TOO_SHORT, UNSEEN, LOW_FREQUENCY}


def test_there_are_published_cases():
    assert FILTER_CASES and all(case["stats"] and case["sequences"] for case in FILTER_CASES)


# Statistics


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.lists(st.integers(0, 9))))
def test_statistics_are_counts_in_order(sequences):
    counts = token_statistics(iter(sequences))
    assert counts == Counter(token for ids in sequences for token in ids)
    assert list(counts) == sorted(counts, key=lambda token: (-counts[token], token))


def test_statistics_are_written_and_read(tmp_path):
    counts = token_statistics([[3, 3, 3, 9, 9, 0, 0, 7]])
    write_statistics(tmp_path / "counts.csv", counts)
    assert (tmp_path / "counts.csv").read_bytes() == b"token_id,count\r\n3,3\r\n0,2\r\n9,2\r\n7,1\r\n"
    assert list(read_statistics(tmp_path / "counts.csv", 10).items()) == list(counts.items())
    assert [path.name for path in tmp_path.iterdir()] == ["counts.csv"]


BAD_STATISTICS = {
    "no file": (None, FileNotFoundError, "No such file"),
    "empty": ("", ValueError, "must begin with the line token_id,count"),
    "another file": ("id,n\n1,2\n", ValueError, "must begin with the line token_id,count"),
    "no tokens": ("token_id,count\n", ValueError, "its largest is None"),
    "no number": ("token_id,count\n1,x\n", ValueError, "line 2: must be a new token id and its count"),
    "negative": ("token_id,count\n-1,2\n", ValueError, "line 2: must be a new token id and its count"),
    "never seen": ("token_id,count\n1,0\n", ValueError, "line 2: must be a new token id and its count"),
    "twice": ("token_id,count\n1,2\n1,2\n", ValueError, "line 3: must be a new token id and its count"),
    "three columns": ("token_id,count\n1,2,3\n", ValueError, "line 2: must be a new token id and its count"),
    "unclosed quote": ('token_id,count\n1,2\n2,"3\n3,4\n', ValueError, "counts.csv must be a CSV file"),
    "unclosed quote, long": ('token_id,count\n1,"' + "1,2\n" * 50_000, ValueError, "counts.csv must be a CSV file"),
    "unclosed quote, first": ('"token_id,count\n1,2\n', ValueError, "counts.csv must be a CSV file"),
    "huge": (f"token_id,count\n1,{'9' * 5000}\n", ValueError, "line 2: must be a new token id and its count"),
    "huge id": (f"token_id,count\n{'9' * 5000},1\n", ValueError, "line 2: must be a new token id and its count"),
    "zero byte": ("token_id,count\n1,\0\n", ValueError, "counts.csv, line 2: must be|counts.csv must be a CSV"),
    "another tokenizer": (
        "token_id,count\n1,2\n10,2\n",
        ValueError,
        "below 10, .*, its largest is 10",
    ),
}


@pytest.mark.parametrize(("content", "kind", "message"), BAD_STATISTICS.values(), ids=BAD_STATISTICS)
def test_bad_statistics(tmp_path, content, kind, message):
    if content is not None:
        (tmp_path / "counts.csv").write_text(content)
    with pytest.raises(kind, match=message):
        read_statistics(tmp_path / "counts.csv", 10)


def test_statistics_that_are_no_utf8(tmp_path):
    (tmp_path / "counts.csv").write_bytes(b"token_id,count\n1,\xff\n")
    with pytest.raises(ValueError, match="counts.csv must be a CSV file in UTF-8"):
        read_statistics(tmp_path / "counts.csv", 10)


# Filter and random sequences


COUNTS = {token: 10 * token for token in range(1, 21)}


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.lists(st.integers(0, 21), max_size=12), max_size=20), st.integers(0, 9), st.integers(1, 5))
def test_windows_are_parts_of_texts_and_hold_the_rule(texts, seed, num_sequences):
    judged = list(filter_sequences(texts, COUNTS, 4, 0.2, num_sequences, seed))
    for text, (outcome, window) in zip(texts, judged, strict=False):
        assert any(text[start : start + len(window)] == window for start in range(len(text) + 1))
        unseen = not COUNTS.keys() >= set(window)
        rare = any(COUNTS.get(token, 99) <= COUNTS[5] for token in window)
        assert outcome == (TOO_SHORT if len(text) < 4 else UNSEEN if unseen else LOW_FREQUENCY if rare else KEPT)
        assert len(window) == 4 or outcome == TOO_SHORT
    kept = [outcome for outcome, _ in judged].count(KEPT)
    assert kept == num_sequences if len(judged) < len(texts) else kept <= num_sequences


def test_windows_begin_anywhere_and_are_seeded():
    text = list(range(6, 21))

    def starts(seed):
        return [window[0] for _, window in filter_sequences([text] * 300, COUNTS, 5, 0.1, 5000, seed)]

    assert set(starts(0)) == set(range(6, 17))
    assert starts(0) == starts(0) != starts(1)


def test_the_filter_stops_without_reading_on():
    def texts():
        yield from [[20, 20]] * 3
        raise AssertionError("read too far")

    assert len(list(filter_sequences(texts(), COUNTS, 2, 0.1, 3))) == 3


def test_random_sequences_are_uniform_and_seeded():
    sequences = list(random_sequences(COUNTS, 200, 160, 0.2, seed=42))
    assert [len(ids) for ids in sequences] == [160] * 200
    drawn = Counter(token for ids in sequences for token in ids)
    assert sorted(drawn) == list(range(6, 21))
    # 32,000 draws from 15 tokens: 2,133 each, with a standard deviation of 45.
    assert all(abs(count - 32000 / 15) < 5 * 45 for count in drawn.values())
    assert sequences == list(random_sequences(COUNTS, 200, 160, 0.2))
    assert sequences != list(random_sequences(COUNTS, 200, 160, 0.2, seed=0))


BAD_ARGUMENTS = {
    "fraction": ({"low_fraction": 1.0}, "`low_fraction` must be at least 0 and below 1, got 1.0"),
    "negative": ({"low_fraction": -0.1}, "`low_fraction` must be at least 0"),
    "length": ({"length": 0}, "`length` must be 1 or more, got 0"),
    "number": ({"num_sequences": 0}, "`num_sequences` must be 1 or more, got 0"),
    "same counts": ({"counts": {1: 5, 2: 5}}, "above the low-frequency threshold, 5, it has none"),
    "no counts": ({"counts": {}}, "`counts` must hold one token at least"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(arguments, message):
    arguments = {"counts": COUNTS} | arguments
    with pytest.raises(ValueError, match=message):
        next(random_sequences(**arguments))
    with pytest.raises(ValueError, match=message):
        next(filter_sequences([[1, 2]], **arguments))


def test_test_sets_come_whole_or_not_at_all(tmp_path, tokenizer):
    path = tmp_path / "test.jsonl"
    ids = tokenizer("In the \u4e2d", add_special_tokens=False).input_ids
    write_test_set(path, [ids, [5]], tokenizer)
    before = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in before.splitlines()]
    assert rows[0] == {"text": "In the \u4e2d", "token_ids": ids} and rows[1]["token_ids"] == [5]

    def interrupted():
        yield [7]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_test_set(path, interrupted(), tokenizer)
    with pytest.raises(ValueError, match="No text is left for"):
        write_test_set(path, [], tokenizer)
    assert path.read_text(encoding="utf-8") == before and [*tmp_path.iterdir()] == [path]


# Texts of any kind


def write_texts(path: Path):
    if path.suffix == ".txt":
        path.write_text("".join(TEXTS), encoding="utf-8")
    elif path.suffix == ".parquet":
        pandas.DataFrame({"text": TEXTS}).to_parquet(path)
    elif path.suffix == ".csv":
        pandas.DataFrame({"text": TEXTS}).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "parquet", "PARQUET"])
def test_every_kind_of_file(ending, tmp_path, tokenizer):
    path = tmp_path / f"te[x]t.{ending.lower()}"
    write_texts(path)
    path = path.rename(path.with_suffix(f".{ending}"))
    found = list(tokenize_rows(stream_rows(str(path)), tokenizer))
    lines = "".join(TEXTS).splitlines(keepends=True)
    assert [text for text, _ in found] == (lines if ending == "txt" else TEXTS)
    assert [ids for _, ids in found] == [tokenizer(text, add_special_tokens=False).input_ids for text, _ in found]


def test_a_folder_is_a_dataset(tmp_path, tokenizer):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"body": split}) + "\n")
    for split in ("train", "test"):
        texts = tokenize_rows(stream_rows(str(tmp_path), split=split), tokenizer, "body")
        assert [text for text, _ in texts] == [split]


def test_token_ids_are_taken_as_they_are(tokenizer):
    rows = [{"text": "In the", "token_ids": [9, 5]}, {"token_ids": [3]}, {"text": "a", "token_ids": None}]
    a = tokenizer("a", add_special_tokens=False).input_ids
    assert list(tokenize_rows(rows, tokenizer)) == [("In the", [9, 5]), (None, [3]), ("a", a)]


def test_rows_are_read_one_at_a_time(tmp_path):
    """Of a file whose end is no JSON, the beginning can be read."""
    path = tmp_path / "long.jsonl"
    line = json.dumps({"text": "a" * 1000}) + "\n"
    path.write_text(line * 30000 + "{")
    rows = stream_rows(str(path))
    assert next(rows) == {"text": "a" * 1000}
    rows.close()


BAD_DATA = {
    "missing": ("none.jsonl", None, "No such file"),
    "no ending": ("text", "a", "must end in one of .txt, .json, .jsonl, .csv, .parquet"),
    "empty": ("empty.txt", "", "is empty"),
    "damaged": ("bad.jsonl", '{"text": 3', "cannot be read: JSON parse error"),
    "no parquet": ("bad.parquet", "text", "cannot be read"),
    "no zip": ("zip.jsonl", b"PK\x03\x04" + bytes(50), "cannot be read: File is not a zip file"),
    "no text": (
        "other.jsonl",
        '{"body": "a"}\n',
        "must hold strings, a row with \\['body'\\] has None",
    ),
    "numbers": ("number.jsonl", '{"text": 3}\n', "must hold strings"),
    "no tokens": ("ids.jsonl", '{"token_ids": ["a"]}\n', "token_ids must hold lists of integers"),
    "no UTF-8": ("latin.txt", b"\xff\xfe\xfa", "cannot be read"),
    "no dataset": ("nowhere/nothing", None, "cannot be loaded: .* A local file needs no hub"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data(tmp_path, tokenizer, name, content, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((OSError, ValueError), match=message):
        list(tokenize_rows(stream_rows(name), tokenizer))


# Commands


@pytest.fixture(scope="module")
def counts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.csv"
    assert run("token-statistics", "-o", path) == 0
    return path


def test_statistics_of_the_bundled_text(counts_file, tokenizer):
    text = BUNDLED_TRAIN_TEXT.read_text(encoding="utf-8")
    lines = (
        tokenizer(line, add_special_tokens=False, verbose=False).input_ids for line in text.splitlines(keepends=True)
    )
    expected = Counter(token for ids in lines for token in ids)
    with counts_file.open(newline="") as file:
        rows = [(int(row["token_id"]), int(row["count"])) for row in csv.DictReader(file)]
    assert dict(rows) == expected and rows == sorted(rows, key=lambda row: (-row[1], row[0]))


def test_test_sets_of_the_bundled_text(counts_file, tmp_path, tokenizer, capsys):
    filtered, chance = tmp_path / "filtered.jsonl", tmp_path / "random.jsonl"
    assert run("filtered-test-set", "-o", filtered, "--counts", counts_file, "--length", 128) == 0
    assert "texts read" in capsys.readouterr().out
    size = ("--length", 7, "--num-sequences", 9)
    assert run("random-test-set", "-o", chance, "--counts", counts_file, *size) == 0
    frequent = set(frequent_tokens(read_statistics(counts_file, len(tokenizer))))
    held_out = BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in filtered.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 20
    for row in rows:
        assert len(row["token_ids"]) == 128 and frequent.issuperset(row["token_ids"]) and row["text"] in held_out
        assert tokenizer.decode(row["token_ids"]) == row["text"]
    rows = [json.loads(line) for line in chance.read_text(encoding="utf-8").splitlines()]
    counts = read_statistics(counts_file, len(tokenizer))
    assert [row["token_ids"] for row in rows] == list(random_sequences(counts, 9, 7, seed=42))


def test_sets_repeat_with_their_seed(counts_file, tmp_path):
    def filtered(seed):
        path = tmp_path / f"{seed}.jsonl"
        assert run("filtered-test-set", "-o", path, "--counts", counts_file, "--length", 64, "--seed", seed) == 0
        return path.read_bytes()

    assert filtered(1) == filtered(1) != filtered(2)


BAD_COMMANDS = {
    "no folder": (["token-statistics", "-o", "{tmp}/none/c.csv"], "there is no folder"),
    "no tokenizer": (["token-statistics", "-o", "{tmp}/c.csv", "--tokenizer", "{tmp}"], "Cannot load the tokenizer"),
    "no tokens": (["token-statistics", "{tmp}/blank.jsonl", "-o", "{tmp}/c.csv"], "must hold text, it has no tokens"),
    "nothing left": (
        ["filtered-test-set", "{tmp}/short.jsonl", "-o", "{tmp}/t.jsonl", "--counts", "{counts}"],
        "No text is left; there were 2 too short",
    ),
    "length": (
        ["random-test-set", "-o", "{tmp}/t.jsonl", "--counts", "{counts}", "--length", "0"],
        "`length` must be",
    ),
    "no counts": (["random-test-set", "-o", "{tmp}/t.jsonl", "--counts", "{tmp}/none.csv"], "No such file"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_bad_commands(counts_file, tmp_path, capsys, arguments, message):
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "short.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    before = sorted(tmp_path.iterdir())
    assert run(*(argument.format(tmp=tmp_path, counts=counts_file) for argument in arguments)) == 1
    assert message in error_line(capsys.readouterr())
    assert sorted(tmp_path.iterdir()) == before

"""The accuracy report of the continuous text autoencoder, as functions and as a command."""

import io
import json

import pytest
import torch
from transformers import AutoTokenizer

from auto_compressor import ContinuousTextAutoencoder, ContinuousTextAutoencoderConfig
from auto_compressor.cli.main import main
from auto_compressor.continuous_text_autoencoder.accuracy_report import (
    ACCURACY_FILE,
    ERROR_CASES_FILE,
    measure_accuracy,
    write_report,
)
from auto_compressor.continuous_text_autoencoder.error_viewer import ErrorCases
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_VALIDATION_TEXT


FIELDS = ["original_text_full", "original_text_decoded", "generated_text"]
FIELDS += ["token_accuracy", "correct_tokens", "total_tokens"]
STRIDE = 4


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_size": 16, "latent_dim": 8, "num_residual_blocks": [1, 1]}
    model = ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(vocab_size=2048, **sizes)).eval()
    assert model.config.total_stride == STRIDE
    return model


@pytest.fixture
def odd_model(model, monkeypatch):
    """Gives back every token below 1000, and 5 in place of the others: what comes back is known."""

    def reconstruct(ids, mask):
        assert ids.shape == mask.shape
        return torch.where(mask.bool(), torch.where(ids < 1000, ids, 5), ids)

    monkeypatch.setattr(model, "reconstruct", reconstruct)
    return model


def report_of(model, tokenizer, texts, **options):
    """The accuracy, and the error cases."""
    errors = io.StringIO()
    accuracy = measure_accuracy(model, tokenizer, iter(texts), errors, **options)
    return accuracy, [json.loads(line) for line in errors.getvalue().splitlines()]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_tokens_and_sequences_are_counted(odd_model, tokenizer, batch_size):
    texts = [("first", [1, 2, 3]), (None, [1000, 7]), ("empty", []), ("third", [9, 1001, 1002, 8, 1003])]
    accuracy, cases = report_of(odd_model, tokenizer, texts, batch_size=batch_size)
    assert (accuracy.sequences, accuracy.correct_sequences, accuracy.tokens, accuracy.correct_tokens) == (3, 1, 10, 6)
    assert accuracy.token_accuracy == 0.6 and accuracy.sequence_accuracy == pytest.approx(1 / 3)
    assert [list(case) for case in cases] == [FIELDS] * 2
    decoded = [tokenizer.decode(ids) for ids in ([1000, 7], [5, 7], [9, 1001, 1002, 8, 1003], [9, 5, 5, 8, 5])]
    assert [[case[field] for field in FIELDS] for case in cases] == [
        [decoded[0], decoded[0], decoded[1], 0.5, 1, 2],
        ["third", decoded[2], decoded[3], 0.4, 2, 5],
    ]


def test_lengths_cut_the_stream(odd_model, tokenizer):
    texts = [(None, [1, 2, 3, 4, 1000]), (None, [6]), (None, []), (None, [7, 8, 9, 10, 11])]
    accuracy, cases = report_of(odd_model, tokenizer, texts, length=3)
    assert (accuracy.length, accuracy.sequences, accuracy.tokens, accuracy.correct_tokens) == (3, 3, 9, 8)
    assert [case["original_text_full"] for case in cases] == [tokenizer.decode([4, 1000, 6])]


def test_a_text_that_tokens_do_not_keep_is_written_as_it_was(odd_model, tokenizer):
    _, cases = report_of(odd_model, tokenizer, [("What it was", [1000])])
    assert cases[0]["original_text_full"] == "What it was"
    assert cases[0]["original_text_decoded"] == tokenizer.decode([1000])


@pytest.mark.parametrize("length", range(1, 2 * STRIDE + 2))
def test_every_length_counts_in_full(model, tokenizer, length):
    """Those that are no multiple of the ratio as well, in whatever batch they are."""
    torch.manual_seed(length)
    rows = [torch.randint(2048, (size,)).tolist() for size in (length, 3 * STRIDE, length)]
    accuracy, cases = report_of(model, tokenizer, [(None, row) for row in rows])
    assert accuracy.tokens == 2 * length + 3 * STRIDE
    alone = [model.reconstruct(torch.tensor([row]))[0].tolist() for row in rows]
    right = [sum(map(int.__eq__, *pair)) for pair in zip(rows, alone, strict=True)]
    assert accuracy.correct_tokens == sum(right)
    wrong = [(tokenizer.decode(ids), count, len(row)) for row, ids, count in zip(rows, alone, right, strict=True)
             if row != ids]  # fmt: skip
    found = [(case["generated_text"], case["correct_tokens"], case["total_tokens"]) for case in cases]
    assert found == wrong and wrong


def test_no_more_than_a_batch_is_read_ahead(odd_model, tokenizer):
    errors, read = io.StringIO(), []

    def texts():
        for number in range(100):
            read.append(number)
            lines = len(errors.getvalue().splitlines())
            assert number - lines <= 4
            yield None, [1000]

    assert measure_accuracy(odd_model, tokenizer, texts(), errors, batch_size=4).sequences == len(read) == 100


BAD_TEXTS = {
    "no texts": ([], {}, "The texts must hold 1 tokens at least"),
    "no tokens": ([("", [])], {}, "The texts must hold 1 tokens at least"),
    "too short": ([("a", [5])], {"length": 2}, "The texts must hold 2 tokens at least"),
    "vocabulary": ([("a", [2048])], {}, "`input_ids` must be from 0 to 2047"),
    "negative": ([("a", [-1])], {}, "`input_ids` must be from 0 to 2047"),
}


@pytest.mark.parametrize(("texts", "options", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_texts(model, tokenizer, texts, options, message):
    with pytest.raises(ValueError, match=message):
        report_of(model, tokenizer, texts, **options)


def test_another_tokenizer_is_refused(tokenizer):
    other = ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(vocab_size=7, hidden_size=4, latent_dim=2))
    with pytest.raises(ValueError, match="of 7 tokens"):
        report_of(other, tokenizer, [("a", [5])])


def test_a_run_that_is_interrupted_leaves_the_report_before(odd_model, tokenizer, tmp_path):
    write_report(tmp_path, odd_model, tokenizer, lambda: [(None, [1000])])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {ACCURACY_FILE, ERROR_CASES_FILE}

    def interrupted():
        yield from [(None, [1001])] * 40
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, odd_model, tokenizer, interrupted)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# The command


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def run(folder, output, *arguments) -> int:
    command = ["reconstruction-accuracy", "--model", folder, "-o", output, *arguments]
    return main([str(argument) for argument in command])


def read_report(path):
    cases = [json.loads(line) for line in (path / ERROR_CASES_FILE).read_text(encoding="utf-8").splitlines()]
    return json.loads((path / ACCURACY_FILE).read_text(encoding="utf-8")), cases


def test_a_test_set_is_measured(folder, model, tokenizer, tmp_path, capsys):
    torch.manual_seed(1)
    rows = [torch.randint(3, 2048, (size,)).tolist() for size in (5, 16, 31)]
    lines = [json.dumps({"text": tokenizer.decode(row), "token_ids": row}) for row in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    assert run(folder, tmp_path / "new" / "report", tmp_path / "test.jsonl") == 0
    (figures,), cases = read_report(tmp_path / "new" / "report")
    alone = [model.reconstruct(torch.tensor([row]))[0].tolist() for row in rows]
    right = sum(sum(map(int.__eq__, *pair)) for pair in zip(rows, alone, strict=True))
    assert figures == {
        "length": None,
        "sequences": 3,
        "correct_sequences": 0,
        "tokens": 52,
        "correct_tokens": right,
        "token_accuracy": right / 52,
        "sequence_accuracy": 0.0,
    }
    assert [case["original_text_full"] for case in cases] == [tokenizer.decode(row) for row in rows]
    assert [case["generated_text"] for case in cases] == [tokenizer.decode(row) for row in alone]
    printed = capsys.readouterr().out
    assert "any" in printed and "52" in printed and f"{right / 52:.3%}" in printed
    assert len(ErrorCases(tmp_path / "new" / "report" / ERROR_CASES_FILE)) == 3


def test_lengths_of_a_text(folder, tokenizer, tmp_path):
    text = BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8")[:4000]
    (tmp_path / "text.txt").write_text(text)
    assert run(folder, tmp_path, tmp_path / "text.txt", "--lengths", 30, 128, "--batch-size", 3) == 0
    figures, cases = read_report(tmp_path)
    tokens = sum(len(tokenizer(line, add_special_tokens=False).input_ids) for line in text.splitlines(keepends=True))
    counts = [(row["length"], row["sequences"], row["tokens"]) for row in figures]
    assert counts == [(length, tokens // length, tokens // length * length) for length in (30, 128)]
    first = [case["original_text_decoded"] for case in cases if case["total_tokens"] == 30]
    assert text.startswith("".join(first)) and len("".join(first)) > len(text) * 0.9


def test_the_held_out_text_is_the_default(folder, tmp_path, tokenizer, monkeypatch):
    texts = []
    monkeypatch.setattr(
        "auto_compressor.continuous_text_autoencoder.accuracy_report.write_report",
        lambda folder, model, tokenizer, read_texts, lengths, batch_size: texts.extend(read_texts()) or [],
    )
    assert run(folder, tmp_path) == 0
    assert "".join(text for text, _ in texts) == BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8")


@pytest.fixture
def other_folder(tmp_path, folder):
    """The config of another model."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gru_byte"}')
    return tmp_path / "other"


BAD_COMMANDS = {
    "lengths": (["--lengths", "32", "0"], "--lengths must be 1 or more, got 0"),
    "batch size": (["--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
    "no model": (["--model", "{tmp}/none"], "none"),
    "another model": (
        ["--model", "{other}"],
        "type continuous_text_autoencoder, it is of the type gru_byte",
    ),
    "no tokenizer": (["--tokenizer", "{tmp}/none"], "Cannot load the tokenizer"),
    "no data": (["{tmp}/none.jsonl"], "No such file"),
    "too short": (["{tmp}/short.txt", "--lengths", "512"], "The texts must hold 512 tokens at least"),
    "ids": (["{tmp}/ids.jsonl"], "`input_ids` must be from 0 to 2047, got 0 to 99999"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_bad_commands(folder, other_folder, tmp_path, capsys, arguments, message):
    (tmp_path / "short.txt").write_text("a b c")
    (tmp_path / "ids.jsonl").write_text('{"text": "a", "token_ids": [5, 99999]}\n')
    arguments = [argument.format(tmp=tmp_path, other=other_folder) for argument in arguments]
    assert run(folder, tmp_path / "report", *arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "report").exists() or not [*(tmp_path / "report").iterdir()]

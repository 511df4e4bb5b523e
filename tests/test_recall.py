"""The recall tasks: what their examples hold, and that the measure tells knowing from guessing."""

import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from modeling_testing import LLAMA_FIELDS
from torch import nn
from transformers import AutoTokenizer, HfArgumentParser

from args import TrainingArguments
from auto_compressor import LlamaAutoCompressorConfig, LlamaAutoCompressorModel
from auto_compressor.evaluation.recall import KEYS, RecallResult, RecallTask, measure_recall, recall_dataset
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from data import DataCollator


TOKENIZER = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
TEXT = "In the beginning God created the heavens and the earth 1 2 3. " * 40
PASSKEY = RecallTask("passkey", length=96, question_length=24)
KEY_VALUE = RecallTask("key_value", length=96, question_length=24, digits=2, pairs=4, questions=2)
TASKS = pytest.mark.parametrize("task", [PASSKEY, KEY_VALUE], ids=lambda task: task.name)


def rows_of(task, split="train", num_rows=8, **kwargs):
    return recall_dataset(task, TOKENIZER, split, num_rows, **{"text": TEXT} | kwargs)


def answer_of(row) -> list[int]:
    return [label for label in row["labels"] if label != -100]


def check_row(row, task):
    """Exact lengths; the labels are the tokens, at the answers; every number is in the context and in its answer."""
    input_ids, labels = row["input_ids"], row["labels"]
    assert len(input_ids) == len(labels) == task.length
    assert all(label in (-100, token) for token, label in zip(input_ids, labels, strict=True))
    answers = TOKENIZER.decode(answer_of(row))
    numbers = [answers[start : start + task.digits] for start in range(0, len(answers), task.digits)]
    assert answers.isdigit() and len(set(numbers)) == len(numbers) == task.questions
    context = TOKENIZER.decode(input_ids[: -task.question_length])
    unlabelled = [token for token, label in zip(input_ids, labels, strict=True) if label == -100]
    assert all(number in context for number in numbers)
    assert not any(map(str.isdigit, TOKENIZER.decode(unlabelled[-(task.question_length - len(answer_of(row))) :])))


@TASKS
def test_rows(task):
    for row in rows_of(task, num_rows=32):
        check_row(row, task)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["passkey", "key_value"]),
    length=st.integers(20, 200),
    question_length=st.integers(4, 60),
    digits=st.integers(1, 8),
    pairs=st.integers(1, 6),
    questions=st.integers(1, 6),
    seed=st.integers(0, 100),
)
def test_any_task_has_its_lengths_or_is_refused(name, length, question_length, digits, pairs, questions, seed):
    pairs = 1 if name == "passkey" else pairs
    questions = min(questions, pairs)
    assume(question_length < length)
    task = RecallTask(name, length, question_length, digits, pairs, questions)
    try:
        rows = rows_of(task, num_rows=2, seed=seed)
    except ValueError as error:
        assert "must hold facts of" in str(error)
        assert length - question_length < 24 * pairs or question_length < 24 * questions
        return
    for row in rows:
        check_row(row, task)


def test_a_value_stands_behind_its_key():
    for row in rows_of(replace(KEY_VALUE, questions=4), num_rows=32):
        context = TOKENIZER.decode(row["input_ids"][:-24])
        facts = re.findall(r" ([a-z]+)(\d\d)", TOKENIZER.decode(row["input_ids"][-24:]))
        assert len({key for key, _ in facts} & set(KEYS)) == 4
        assert all(f" {key}{value}." in context for key, value in facts)


@TASKS
def test_the_same_call_gives_the_same_rows(task):
    assert rows_of(task)[:] == rows_of(task)[:]
    assert rows_of(task)[:4] == rows_of(task, num_rows=4)[:]


@TASKS
def test_splits_and_seeds_differ(task):
    draws = [rows_of(task), rows_of(task, "validation"), rows_of(task, seed=1)]
    rows = {tuple(row["input_ids"]) for draw in draws for row in draw}
    assert len(rows) == 24


def test_the_splits_have_the_bundled_texts():
    train, validation = (recall_dataset(PASSKEY, TOKENIZER, split, 4) for split in ("train", "validation"))
    assert not {tuple(ids[-24:-12]) for ids in train["input_ids"]} & {
        tuple(ids[-24:-12]) for ids in validation["input_ids"]
    }


def test_all_labels():
    rows = rows_of(PASSKEY, answers_only=False)
    assert rows["labels"][:] == rows["input_ids"][:] == rows_of(PASSKEY)["input_ids"][:]


def test_depth_is_uniform():
    """The place of the first digit, over the room it has: mean 1/2, and each quarter of the room as often."""
    task = RecallTask("passkey", length=128, question_length=16, digits=1)
    digits = {TOKENIZER.convert_tokens_to_ids(str(digit)) for digit in range(10)}
    places = [next(i for i, id in enumerate(row["input_ids"]) if id in digits) for row in rows_of(task, num_rows=2000)]
    depths = (torch.tensor(places) - min(places)) / (max(places) - min(places))
    assert abs(depths.mean() - 0.5) < 0.03
    assert (torch.histc(depths, bins=4) / 2000 - 0.25).abs().max() < 0.04


def test_rows_can_be_saved_and_collated(tmp_path):
    rows = rows_of(KEY_VALUE)
    rows.save_to_disk(tmp_path / "folder")
    rows.to_json(tmp_path / "rows.jsonl")
    batch = DataCollator(pad_token_id=0)(list(rows))
    assert batch["labels"].tolist() == rows["labels"][:] and batch["attention_mask"].all()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "riddle"}, "`name` must be one of .*'riddle'"),
        ({"digits": 0}, "`digits` must be 1 or more, got 0"),
        ({"pairs": 0}, "`pairs` must be between 1 and"),
        ({"pairs": 11, "digits": 1}, "`pairs` must be between 1 and 10"),
        ({"keys": 0}, "`keys` must be between 1 and"),
        ({"keys": 3}, "`pairs` must be between 1 and 3 for 'key_value' with 2 digits and 3 keys, got 4"),
        ({"keys": len(KEYS) + 1}, "`keys` must be between 1 and"),
        ({"pairs": len(KEYS) + 1}, "`pairs` must be between 1 and"),
        ({"questions": 5}, "`questions` must be between 1 and `pairs` = 4, got 5"),
        ({"questions": 0}, "`questions` must be"),
        ({"question_length": 96}, "`question_length` must be at least 1 and below `length` = 96, got 96"),
    ],
)
def test_bad_tasks(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(KEY_VALUE, **fields)


def test_a_passkey_is_one_fact():
    with pytest.raises(ValueError, match="`pairs` must be between 1 and 1 for 'passkey'"):
        replace(PASSKEY, pairs=2)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"task": replace(PASSKEY, length=30)}, "`length` 30 with `question_length` 24 must hold facts of"),
        ({"task": replace(PASSKEY, question_length=4)}, "with `question_length` 4 must hold facts of"),
        ({"split": "test"}, "`split` must be one of .*'test'"),
        ({"num_rows": 0}, "`num_rows` must be 1 or more, got 0"),
        ({"text": "short"}, "`text` must have at least"),
    ],
)
def test_bad_datasets(kwargs, message):
    with pytest.raises(ValueError, match=message):
        rows_of(**{"task": PASSKEY} | kwargs)


class Oracle(nn.Module):
    """Knows the number in the context it is given, if it is given one; its summary vectors are the token ids."""

    device = torch.device("cpu")

    def __init__(self, task, knows=True):
        super().__init__()
        self.task, self.knows = task, knows
        self.digits = torch.tensor([TOKENIZER.convert_tokens_to_ids(str(digit)) for digit in range(10)])

    def compress(self, input_ids, segment_lengths, return_attention_mask):
        assert sum(segment_lengths) == input_ids.shape[1] and return_attention_mask
        return input_ids[..., None].float(), torch.ones_like(input_ids)

    def forward(self, input_ids, logits_to_keep, use_cache, softprompt=None, softprompt_attention_mask=None):
        context = input_ids[:, :-logits_to_keep] if softprompt is None else softprompt[..., 0].long()
        guesses = torch.zeros(len(input_ids), logits_to_keep, dtype=torch.long)
        for row, ids in enumerate(context if self.knows else context[:, :0]):
            number = ids[torch.isin(ids, self.digits)]
            if len(number):
                guesses[row, -self.task.digits - 1 : -1] = number
        return SimpleNamespace(logits=nn.functional.one_hot(guesses, len(TOKENIZER)).float())


@pytest.mark.parametrize("full_context", [False, True])
def test_a_model_that_knows_and_one_that_does_not(full_context):
    rows, segments = rows_of(PASSKEY, num_rows=7), [36, 36, 24]
    none, own, other = measure_recall(Oracle(PASSKEY), rows, segments, full_context, batch_size=4)
    assert (own.exact_match, own.token_accuracy, own.examples, own.tokens) == (1.0, 1.0, 7, 35)
    assert (none.exact_match, none.token_accuracy) == (0.0, 0.0)
    assert other.exact_match == 0.0 and other.token_accuracy < 0.5
    assert (none.mean_positions, own.mean_positions, other.mean_positions) == (0, 72, 72)
    ignorant = measure_recall(Oracle(PASSKEY, knows=False), rows, segments, full_context, batch_size=4)
    assert [result.token_accuracy for result in ignorant] == [0.0] * 3


def test_exact_match_needs_every_token():
    logits = nn.functional.one_hot(torch.tensor([[1, 2, 3], [1, 2, 3]]), 5).float()
    result = RecallResult("own context")
    result.add(logits, torch.tensor([[-100, 2, 3], [-100, 2, 4]]), positions=6)
    assert (result.exact_match, result.token_accuracy, result.mean_positions) == (0.5, 0.75, 3)


@pytest.mark.parametrize("full_context", [False, True])
def test_a_real_model(full_context):
    """Through summary vectors the measure sees what `forward` over all segments computes."""
    config = LlamaAutoCompressorConfig(**LLAMA_FIELDS | {"vocab_size": len(TOKENIZER), "max_position_embeddings": 128})
    model = LlamaAutoCompressorModel(config).eval()
    rows, segments = rows_of(KEY_VALUE), [36, 36, 24]
    none, own, other = measure_recall(model, rows, segments, full_context)
    assert own.mean_positions == other.mean_positions == (72 if full_context else 6) and none.mean_positions == 0
    batch = rows.with_format("torch")[:]
    logits = model(batch["input_ids"], segment_lengths=None if full_context else segments).logits[:, :-1]
    expected = RecallResult("own context")
    expected.add(logits, batch["labels"][:, 1:], positions=own.positions)
    assert own == expected


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"segment_lengths": [96]}, r"`segment_lengths` must be two or more that sum to 96, got \[96\]"),
        ({"segment_lengths": [36, 36]}, "`segment_lengths` must be two or more that sum to 96"),
        ({"batch_size": 1}, "`batch_size` must be 2 or more .*, got 1"),
        ({"batch_size": 7}, "`batch_size` must be 2 or more and leave no batch of one of 8 rows, got 7"),
    ],
)
def test_bad_measures(kwargs, message):
    with pytest.raises(ValueError, match=message):
        measure_recall(Oracle(PASSKEY), rows_of(PASSKEY), **{"segment_lengths": [36, 36, 24]} | kwargs)


def test_train_knows_the_flags_of_the_benchmark(tmp_path):
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "recall.py"))
    for flags in benchmark["CONFIGURATIONS"].values():
        arguments = ["--output_dir", str(tmp_path), *benchmark["TRAINING"], *flags.format(teacher="teacher").split()]
        (training_args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(arguments)
        assert training_args.full_attention or training_args.summary_length or training_args.compression_max_len
    for stage in benchmark["STAGES"]:
        for name in stage.tasks:
            (row,) = rows_of(benchmark["task_of"](name, stage), num_rows=1, text=benchmark["FILLER"])
            assert len(row["input_ids"]) == sum(stage.segment_lengths)

"""Exact recall: numbers stated somewhere in a long text and asked for at its end, and how many a model gives back.

`recall_dataset` makes the examples, for training and for evaluation; `measure_recall` counts the right answers.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files.bundled import BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT


TEXT_OF_SPLIT = {"train": BUNDLED_TRAIN_TEXT, "validation": BUNDLED_VALIDATION_TEXT}
KEYS = (
    "bread brother camp cattle child city daughter day door earth father field fire fruit gate gold ground "
    "hand head heart hill house king land light lord man mother mountain name night people place priest river "
    "sea servant sheep silver son stone sword temple tent tree valley vine voice wall water wife wind woman"
).split()

# What introduces an answer, in the text and in the question, and the answer.
Fact = tuple[str, str]


@dataclass(frozen=True)
class RecallTask:
    """
    A kind of examples: facts at random depths of a filler text, and some of them asked for in the last segment.

    Args:
        name (`str`): `"passkey"` (one number, the same question always) or `"key_value"` (numbers under keys).
        length (`int`): Tokens of an example.
        question_length (`int`): Tokens of its last segment, which ends with the questions and answers. All facts lie
            before it.
        digits (`int`, defaults to 5): Digits of every number. A guess is right once in `10**digits`.
        pairs (`int`, defaults to 1): Facts of an example, 1 for `"passkey"`.
        questions (`int`, defaults to 1): How many of the facts are asked for.
        keys (`int`, defaults to all of `KEYS`): Keys that `"key_value"` draws from. The fewer, the easier to learn.

    Raises:
        ValueError: for an unknown name, or a number out of its range.
    """

    name: str
    length: int
    question_length: int
    digits: int = 5
    pairs: int = 1
    questions: int = 1
    keys: int = len(KEYS)

    def __post_init__(self):
        if self.name not in TASKS:
            raise ValueError(f"`name` must be one of {list(TASKS)}, got {self.name!r}.")
        if self.digits < 1:
            raise ValueError(f"`digits` must be 1 or more, got {self.digits}.")
        if not 1 <= self.keys <= len(KEYS):
            raise ValueError(f"`keys` must be between 1 and {len(KEYS)}, got {self.keys}.")
        most_pairs = 1 if self.name == "passkey" else min(self.keys, 10**self.digits)
        if not 1 <= self.pairs <= most_pairs:
            raise ValueError(
                f"`pairs` must be between 1 and {most_pairs} for {self.name!r} with {self.digits} digits"
                f" and {self.keys} keys, got {self.pairs}."
            )
        if not 1 <= self.questions <= self.pairs:
            raise ValueError(f"`questions` must be between 1 and `pairs` = {self.pairs}, got {self.questions}.")
        if not 1 <= self.question_length < self.length:
            raise ValueError(
                f"`question_length` must be at least 1 and below `length` = {self.length}, got {self.question_length}."
            )


def passkey_facts(task: RecallTask, rng: random.Random) -> list[Fact]:
    """One number, always under the same name."""
    return [(" The passkey is ", f"{rng.randrange(10**task.digits):0{task.digits}}")]


def key_value_facts(task: RecallTask, rng: random.Random) -> list[Fact]:
    """Distinct numbers under distinct keys."""
    keys, values = rng.sample(KEYS[: task.keys], task.pairs), rng.sample(range(10**task.digits), task.pairs)
    return [(f" {key}", f"{value:0{task.digits}}") for key, value in zip(keys, values, strict=True)]


TASKS = {"passkey": passkey_facts, "key_value": key_value_facts}


def scatter(pieces: list[list[int]], filler: list[int], rng: random.Random) -> list[int]:
    """Inserts the pieces, in their order, at uniformly random depths of the filler."""
    cuts = sorted(rng.randint(0, len(filler)) for _ in pieces)
    tokens: list[int] = []
    for piece, start, end in zip(pieces, [0, *cuts], cuts, strict=False):
        tokens += filler[start:end] + piece
    return tokens + filler[cuts[-1] :]


def recall_example(
    task: RecallTask, encode: Callable[[str], list[int]], filler: list[int], rng: random.Random
) -> dict[str, list[int]]:
    """
    Draws one example: `input_ids` and `labels` of `task.length` tokens, labels -100 at all but the answers.

    Raises:
        ValueError: if facts, questions or filler are too short or too long for the lengths of the task.
    """
    facts = [(encode(prompt), encode(answer)) for prompt, answer in TASKS[task.name](task, rng)]
    statements = [prompt + answer + encode(".") for prompt, answer in facts]
    asked = rng.sample(facts, task.questions)
    question = [token for prompt, answer in asked for token in prompt + answer]
    labels = [label for prompt, answer in asked for label in [-100] * len(prompt) + answer]

    spare = task.length - task.question_length - sum(map(len, statements))
    lead = task.question_length - len(question)
    if spare < 0 or lead < 0:
        raise ValueError(
            f"`length` {task.length} with `question_length` {task.question_length} must hold facts of"
            f" {task.length - task.question_length - spare} tokens and questions of {len(question)}."
        )
    if len(filler) < spare + lead:
        raise ValueError(f"`text` must have at least {spare + lead} tokens without digits, got {len(filler)}.")
    start = rng.randint(0, len(filler) - spare - lead)
    window = filler[start : start + spare + lead]
    tokens = scatter(statements, window[:spare], rng) + window[spare:] + question
    return {"input_ids": tokens, "labels": [-100] * (task.length - len(labels)) + labels}


def recall_dataset(
    task: RecallTask,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    num_rows: int,
    seed: int = 0,
    text: str | None = None,
    answers_only: bool = True,
) -> Dataset:
    """
    Draws a dataset of examples; the same call gives the same rows. The splits have random draws of their own.

    The numbers of an example stand in its facts and its answers only: the filler loses its digits.

    Args:
        task ([`RecallTask`]): What the examples are.
        tokenizer (`PreTrainedTokenizerBase`): Any. Facts, answers and filler are tokenised apart and joined.
        split (`str`): `"train"` or `"validation"`.
        num_rows (`int`): Examples.
        seed (`int`, defaults to 0): Seed of the random draws.
        text (`str`, *optional*): Filler. Default: the bundled text of the split.
        answers_only (`bool`, defaults to `True`): Whether `labels` are the tokens of the answers only, or all tokens.

    Returns:
        `Dataset`: Columns `input_ids` and `labels`, each a list of `task.length` ints.

    Raises:
        ValueError: for an unknown split, `num_rows` below 1, and what `recall_example` refuses.
    """
    if split not in TEXT_OF_SPLIT:
        raise ValueError(f"`split` must be one of {list(TEXT_OF_SPLIT)}, got {split!r}.")
    if num_rows < 1:
        raise ValueError(f"`num_rows` must be 1 or more, got {num_rows}.")

    @cache
    def encode(piece: str) -> list[int]:
        return tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]

    text = TEXT_OF_SPLIT[split].read_text(encoding="utf-8") if text is None else text
    filler = encode(re.sub(r"\d", "", text))
    draws = (random.Random(f"{split} {seed} {row}") for row in range(num_rows))
    rows = [recall_example(task, encode, filler, rng) for rng in draws]
    return Dataset.from_list(rows if answers_only else [row | {"labels": row["input_ids"]} for row in rows])


@dataclass
class RecallResult:
    """
    How many answers a model gives, with the context in one form.

    Args:
        context (`str`): The form: none, summary vectors or all tokens, or those of another example (the control).
        positions (`int`): Columns that the contexts take up, over all examples.
        exact (`int`), examples (`int`): Examples whose answer tokens are all predicted right, and all examples.
        correct (`int`), tokens (`int`): Answer tokens predicted right, and all of them.
    """

    context: str
    positions: int = 0
    exact: int = 0
    examples: int = 0
    correct: int = 0
    tokens: int = 0

    @property
    def exact_match(self) -> float:
        return self.exact / self.examples

    @property
    def token_accuracy(self) -> float:
        return self.correct / self.tokens

    @property
    def mean_positions(self) -> float:
        return self.positions / self.examples

    def add(self, logits: torch.Tensor, targets: torch.LongTensor, positions: int):
        """Counts a batch: `logits` `(batch, length, vocab_size)` for `targets` `(batch, length)`, -100 is ignored."""
        is_answer = targets != -100
        is_right = logits.argmax(dim=-1) == targets
        self.positions += positions
        self.exact += (is_right | ~is_answer).all(dim=1).sum().item()
        self.examples += targets.shape[0]
        self.correct += (is_right & is_answer).sum().item()
        self.tokens += is_answer.sum().item()


NO_CONTEXT, OWN_CONTEXT, OTHER_CONTEXT = "no context", "own context", "context of another example"

Context = dict[str, torch.Tensor]


def read_context(model: PreTrainedModel, input_ids: torch.LongTensor, segment_lengths: list[int] | None) -> Context:
    """The arguments that tell the model its context: summary vectors of the segments, or without any all tokens."""
    if segment_lengths is None:
        return {"input_ids": input_ids}
    softprompt, mask = model.compress(input_ids, segment_lengths=segment_lengths, return_attention_mask=True)
    return {"input_ids": input_ids[:, :0], "softprompt": softprompt, "softprompt_attention_mask": mask}


def count_positions(context: Context) -> int:
    """Columns that the contexts of a batch take up."""
    return int(context["softprompt_attention_mask"].sum()) if "softprompt" in context else context["input_ids"].numel()


def predict_text(model: PreTrainedModel, context: Context, text: torch.LongTensor) -> torch.Tensor:
    """Logits of every token of `text` `(batch, length)` but the first: `(batch, length - 1, vocab_size)`."""
    input_ids = torch.cat([context["input_ids"], text], dim=1)
    arguments = context | {"input_ids": input_ids, "logits_to_keep": text.shape[1], "use_cache": False}
    return model(**arguments).logits[:, :-1]


@torch.no_grad()
def measure_recall(
    model: PreTrainedModel,
    dataset: Dataset,
    segment_lengths: list[int],
    full_context: bool = False,
    batch_size: int = 32,
) -> list[RecallResult]:
    """
    Counts the right answers in the last segments, each token predicted after the true ones before it.

    Beside the examples' own contexts there are two controls: no context, the level of guessing; and the context of the
    neighbour in the batch. Recall that is above the first and not above the second is no recall of the context.

    Args:
        model (`PreTrainedModel`): In evaluation mode. An AutoCompressor, or with `full_context` any language model.
        dataset (`Dataset`): From [`recall_dataset`] with `answers_only`.
        segment_lengths (`list[int]`): Two or more segments that sum to the length of the rows.
        full_context (`bool`, defaults to `False`): Whether the model reads all tokens of the context in place of the
            summary vectors of its segments.
        batch_size (`int`, defaults to 32): Rows at a time, 2 or more.

    Returns:
        `list[RecallResult]`: No context, the own one, and that of another example.

    Raises:
        ValueError: for other segments, and where a batch would hold a single row, which has no neighbour.
    """
    length = len(dataset[0]["input_ids"])
    if len(segment_lengths) < 2 or sum(segment_lengths) != length:
        raise ValueError(f"`segment_lengths` must be two or more that sum to {length}, got {segment_lengths}.")
    if batch_size < 2 or len(dataset) % batch_size == 1:
        raise ValueError(
            f"`batch_size` must be 2 or more and leave no batch of one of {len(dataset)} rows, got {batch_size}."
        )
    results = {name: RecallResult(name) for name in (NO_CONTEXT, OWN_CONTEXT, OTHER_CONTEXT)}
    for rows in dataset.with_format("torch").iter(batch_size):
        input_ids, labels = rows["input_ids"].to(model.device), rows["labels"].to(model.device)
        beginning, text = input_ids[:, : -segment_lengths[-1]], input_ids[:, -segment_lengths[-1] :]
        targets = labels[:, beginning.shape[1] + 1 :]
        own = read_context(model, beginning, None if full_context else segment_lengths[:-1])
        other = {name: tensor.roll(1, dims=0) for name, tensor in own.items()}
        contexts = {NO_CONTEXT: {"input_ids": beginning[:, :0]}, OWN_CONTEXT: own, OTHER_CONTEXT: other}
        for name, context in contexts.items():
            results[name].add(predict_text(model, context, text), targets, count_positions(context))
    return list(results.values())


__all__ = ["KEYS", "TASKS", "RecallResult", "RecallTask", "measure_recall", "recall_dataset"]

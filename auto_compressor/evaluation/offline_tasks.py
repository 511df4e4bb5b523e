"""Tasks for the LM evaluation harness that need no hub: what does a model still know of a context that it compressed?

Five tasks of multiple choice among four, over the held-out text that comes with the package. A model that has lost the
context is right once in four; the wrong choices of `key_value`, `copy` and `cloze` stand in the context too, so that
knowing its words is not enough.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files.bundled import BUNDLED_VALIDATION_TEXT
from ..files.whole_files import write_whole


NUM_CHOICES = 4
CONTEXT_CHARACTERS = 1500  # of an English text about 350 tokens
KINDS = {
    "animal": "lion horse eagle snake camel dove wolf sheep".split(),
    "tool": "hammer sword plow needle saw axe spade net".split(),
    "food": "bread honey figs cheese salt oil wheat grapes".split(),
    "place": "city river desert mountain garden temple valley harbor".split(),
}
LABELS = "red blue green white black gold".split()

Case = dict[str, Any]  # question, choices, answer


def sentences_of(text: str) -> list[str]:
    return [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if sentence.strip()]


def passage(sentences: list[str], rng: random.Random) -> list[str]:
    """Sentences that follow one another, of about `CONTEXT_CHARACTERS` together."""
    start, length = rng.randrange(len(sentences) - 60), 0
    end = start
    while length < CONTEXT_CHARACTERS:
        length += len(sentences[end]) + 1
        end += 1
    return sentences[start:end]


def insert(context: list[str], facts: list[str], rng: random.Random) -> str:
    """The sentences with the facts at random depths."""
    context = list(context)
    for fact in facts:
        context.insert(rng.randint(0, len(context)), fact)
    return " ".join(context)


def case(question: str, right: str, wrong: list[str], rng: random.Random) -> Case:
    """A question with its choices in random order; each begins with a space."""
    choices = [" " + right, *(" " + choice for choice in wrong[: NUM_CHOICES - 1])]
    rng.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(" " + right)}


def needle(sentences: list[str], rng: random.Random) -> Case:
    """One number in a long text; the other choices stand nowhere."""
    right, *wrong = (f"{number:05}" for number in rng.sample(range(10**5), NUM_CHOICES))
    text = insert(passage(sentences, rng), [f"The passkey is {right}."], rng)
    return case(f"{text}\nWhat is the passkey? The passkey is", right, wrong, rng)


def key_value(sentences: list[str], rng: random.Random) -> Case:
    """Four numbers under four names; all of them are choices."""
    names = rng.sample(KINDS["place"], NUM_CHOICES)
    numbers = [f"{number:03}" for number in rng.sample(range(100, 1000), NUM_CHOICES)]
    facts = [f"The number of the {name} is {number}." for name, number in zip(names, numbers, strict=True)]
    text = insert(passage(sentences, rng), facts, rng)
    return case(f"{text}\nThe number of the {names[0]} is", numbers[0], numbers[1:], rng)


def copy(sentences: list[str], rng: random.Random) -> Case:
    """The first half of a sentence of the text; the choices are second halves of its sentences."""
    context = passage(sentences, rng)
    halves = [sentence.split() for sentence in context if len(sentence.split()) >= 10]
    chosen = rng.sample(halves, NUM_CHOICES)
    (begin, right), *others = ((words[: len(words) // 2], words[len(words) // 2 :]) for words in chosen)
    wrong = [" ".join(end) for _, end in others]
    question = f"{' '.join(context)}\nThe same once more: {' '.join(begin)}"
    return case(question, " ".join(right), wrong, rng)


def names_in(text: str) -> list[str]:
    """Capitalised words that do not begin a sentence, each once."""
    return list(dict.fromkeys(re.findall(r"(?<=[a-z,;] )[A-Z][a-z]{3,}", text)))


def cloze(sentences: list[str], rng: random.Random) -> Case:
    """A name that stands in the text and in the sentence behind it; the choices are names of the text."""
    while True:
        *context, last = passage(sentences, rng)
        text = " ".join(context)
        known = names_in(text)
        asked = [name for name in names_in(last) if name in known]
        if asked and len(known) >= NUM_CHOICES:
            begin = last[: last.index(asked[-1])].rstrip()
            wrong = rng.sample([name for name in known if name != asked[-1]], NUM_CHOICES - 1)
            return case(f"{text} {begin}", asked[-1], wrong, rng)


def icl(sentences: list[str], rng: random.Random) -> Case:
    """Solved examples of four kinds of words, whose labels are drawn anew for every case, and a word of one kind."""
    labels = dict(zip(KINDS, rng.sample(LABELS, len(KINDS)), strict=True))
    words = {kind: rng.sample(words, 6) for kind, words in KINDS.items()}
    examples = [(word, labels[kind]) for kind, (_, *shown) in words.items() for word in shown]
    rng.shuffle(examples)
    kind = rng.choice(list(KINDS))
    text = "".join(f"{word}: {label}\n\n" for word, label in examples)
    wrong = [label for other, label in labels.items() if other != kind]
    return case(f"{text}{words[kind][0]}:", labels[kind], wrong, rng)


TASKS: dict[str, Callable[[list[str], random.Random], Case]] = {
    "needle": needle,
    "key_value": key_value,
    "copy": copy,
    "cloze": cloze,
    "icl": icl,
}


def settings(name: str, data: Path) -> dict[str, Any]:
    """What lm-eval reads of a task."""
    return {
        "task": f"offline_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def write_tasks(folder: Path, num_cases: int = 60, seed: int = 0):
    """
    Writes five tasks, a JSON Lines file and a description of each, which `--include_path` takes.

    Args:
        folder (`Path`): Is made if it is not there.
        num_cases (`int`, defaults to 60): Cases of each task.
        seed (`int`, defaults to 0): Of what is drawn at random: the same cases for the same seed.

    Raises:
        ValueError: for less than one case.
    """
    if num_cases < 1:
        raise ValueError(f"`num_cases` must be 1 or more, got {num_cases}.")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sentences = sentences_of(BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8"))
    for name, make in TASKS.items():
        rng = random.Random(f"{name} {seed}")
        cases = [make(sentences, rng) for _ in range(num_cases)]
        data = folder / f"{name}.jsonl"
        write_whole(data, "".join(json.dumps(each) + "\n" for each in cases).encode())
        # JSON is YAML.
        write_whole(folder / f"{name}.yaml", json.dumps(settings(name, data), indent=2).encode())


__all__ = ["TASKS", "write_tasks"]

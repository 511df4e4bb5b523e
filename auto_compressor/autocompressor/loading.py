"""The one way in which this package reads configs, models, tokenizers and adapters of a folder or the hub.

No code that lies beside a model is run or asked for, and whatever is damaged is one error of one line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase


# What a part of a message of a reader means.
HINTS = {
    "ignore_mismatched_sizes": "weights and config differ in size",
    "PytorchStreamReader": "a weight file is damaged",
    "Weights only load": "a weight file holds more than tensors",
}


def load(loader: type, name: str, *args: Any, problem: str | None = None, **kwargs: Any) -> Any:
    """
    Returns `loader.from_pretrained(name, ...)`, without code that comes with the model.

    Args:
        loader (`type`): A class of transformers, or an Auto class.
        name (`str`): A folder or a hub name.
        problem (`str`, *optional*): How an error begins (default: `Cannot load the model` and its name).
        args, kwargs: As for its `from_pretrained`.

    Raises:
        OSError: if it is missing or damaged, or holds more than tensors.
        ValueError: if it needs code of its own, is of another kind, or has fields that make no model.
    """
    with reading(problem or f"Cannot load the model {str(name)!r}"):
        return loader.from_pretrained(name, *args, trust_remote_code=False, **kwargs)


def load_tokenizer(name: str, problem: str | None = None, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a folder or a hub name; an `OSError` of one line where there is none."""
    problem = problem or f"Cannot load the tokenizer of {str(name)!r}"
    try:
        return load(AutoTokenizer, name, problem=problem, **kwargs)
    except ValueError as error:
        raise OSError(f"{problem}: {error}") from error


@contextmanager
def reading(problem: str) -> Iterator[None]:
    """Makes whatever the reader of a model raises one `OSError` or `ValueError` of one line."""
    try:
        yield
    except Exception as error:  # damaged files make readers raise almost anything
        raise one_line(error, problem) from error


def one_line(error: Exception, problem: str) -> Exception:
    """What stands for the error of a reader: a `ValueError` for another kind of model, else an `OSError`."""
    if "trust_remote_code" in str(error):
        return ValueError(f"{problem}: it needs code that comes with it, which is never run.")
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    damaged = isinstance(cause, (UnicodeDecodeError, JSONDecodeError))
    if isinstance(cause, (ValueError, ImportError)) and not damaged:
        return ValueError(first_line(cause))
    said = isinstance(cause, OSError) and str(cause).startswith("Cannot ")
    return OSError(first_line(cause) if said else f"{problem}: {reason(cause)}")


def reason(error: BaseException) -> str:
    """Why something cannot be read."""
    for hint, meaning in HINTS.items():
        if hint in str(error):
            return meaning
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    return f"a file is damaged ({type(error).__name__}: {first_line(error)})"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


__all__ = ["load", "load_tokenizer", "reading", "reason"]

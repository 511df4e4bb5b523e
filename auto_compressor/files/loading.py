"""The one way in which this package reads configs, models, tokenizers and adapters of a folder or the hub.

No code that lies beside a model is run or asked for, and whatever is damaged is one error of one line.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


# What a part of a message of a reader means.
HINTS = {
    "ignore_mismatched_sizes": "weights and config differ in size",
    "PytorchStreamReader": "a weight file is damaged",
    "Weights only load": "a weight file holds more than tensors",
}
MAX_MESSAGE = 400
# Which checkpoint of a name `from_pretrained` is to read: its config has to be of the same.
CHECKPOINT_OPTIONS = (
    "cache_dir",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
# Fields that say how often a part is there; the deepest models have some hundred layers.
DEPTH, MAX_DEPTH = re.compile(r"(.*_)?(layers?|levels?|blocks)"), 1000
# What an AutoCompressor has beyond its base model, and the fields that decide about it.
NEW_MODULES = ("embed_summary", "stop_head", "summary_norm", "summary_projection")
NEW_FIELDS = ("summary_length", "sum_token_id", "summary_source", "summary_scale", "summary_residual")


def load(loader: type, name: str, *args: Any, problem: str | None = None, **kwargs: Any) -> Any:
    """
    Returns `loader.from_pretrained(name, ...)`, without code that comes with the model.

    Args:
        loader (`type`): A class of transformers, or an Auto class.
        name (`str`): A folder or a hub name.
        problem (`str`, *optional*): How an error begins (default: `Cannot load the model` and its name).
        args, kwargs: As for its `from_pretrained`.

    Raises:
        OSError: if it is missing or damaged, lacks weights, or holds more than tensors.
        ValueError: if it needs code of its own, is of another kind, or has fields that make no model.
    """
    problem = problem or f"Cannot load the model {str(name)!r}"
    with reading(problem):
        saved = config_in(Path(name, kwargs.get("subfolder") or ""))
        check_depth(saved, problem)
        if not (hasattr(loader, "from_config") or issubclass(loader, PreTrainedModel)):
            return loader.from_pretrained(name, *args, trust_remote_code=False, **kwargs)
        options = {"trust_remote_code": False, "output_loading_info": True}
        model, found = loader.from_pretrained(name, *args, **options, **kwargs)
    if not kwargs.get("ignore_mismatched_sizes"):  # with it, a model is to grow
        check_complete(model, set(found["missing_keys"]), saved, problem)
    return model


def checkpoint_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options of `from_pretrained` that say which checkpoint is read."""
    return {name: options[name] for name in CHECKPOINT_OPTIONS if name in options}


def config_in(folder: Path) -> Any:
    """What `config.json` of a folder holds; nothing if it cannot be read, which is left to its reader to say."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def check_depth(config: Any, problem: str, name: str = ""):
    """Raises a `ValueError` for a config whose model would take hours to be made, for all of its layers."""
    if isinstance(config, dict | list):
        for key, value in config.items() if isinstance(config, dict) else ((name, value) for value in config):
            check_depth(value, problem, key)
    elif DEPTH.fullmatch(name) and isinstance(config, int) and config > MAX_DEPTH:
        raise ValueError(f"{problem}: `{name}` in its config must be {MAX_DEPTH} at most, got {config!r:.20}.")


def check_complete(model: PreTrainedModel, missing: set[str], saved: Any, problem: str):
    """Raises an `OSError` for weights that are not in the file and would be drawn at random."""
    if may_be_new(model, saved):
        missing = {name for name in missing if name.split(".")[0] not in NEW_MODULES}
    if missing:
        raise OSError(f"{problem}: it lacks {', '.join(sorted(missing)):.{MAX_MESSAGE}}.")


def may_be_new(model: PreTrainedModel, saved: Any) -> bool:
    """Whether a file may lack what is new in an AutoCompressor: that of another class does, or with other fields."""
    same_class = isinstance(saved, dict) and saved.get("architectures") == [type(model).__name__]
    return not same_class or any(saved.get(name) != getattr(model.config, name, None) for name in NEW_FIELDS)


def reports_only(message: str, modules: tuple[str, ...]) -> bool:
    """Whether a message of transformers is its report, a row for each weight, that these modules alone are missing."""
    rows = [line.strip() for line in message.splitlines() if re.search(r"\| (MISSING|UNEXPECTED|MISMATCH)", line)]
    return "LOAD REPORT" in message and all("| MISSING" in row and row.startswith(modules) for row in rows)


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


def hinted(error: BaseException) -> str | None:
    """What a message of a reader means, if it is a known one."""
    return next((meaning for hint, meaning in HINTS.items() if hint in str(error)), None)


def reason(error: BaseException) -> str:
    """Why something cannot be read."""
    if (meaning := hinted(error)) is not None:
        return meaning
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    return f"a file is damaged ({type(error).__name__}: {first_line(error)})"


def first_line(error: BaseException) -> str:
    """What an error says, or what it is, within a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_MESSAGE]


__all__ = [
    "CHECKPOINT_OPTIONS",
    "NEW_MODULES",
    "checkpoint_options",
    "first_line",
    "hinted",
    "load",
    "load_tokenizer",
    "reading",
    "reason",
    "reports_only",
]

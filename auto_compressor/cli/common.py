"""What the sub-commands share: the model of `--model`, texts from files, progress."""

import argparse
import sys
from pathlib import Path


def add_model_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--model", required=True, help="AutoCompressor: a folder or a hub name")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="(default: as saved)"
    )


def add_budget_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--max-summary-length", type=int, help="most summary vectors per segment (default: all that the model makes)"
    )


def resolve_device(name: str | None):
    """
    Returns the device of `--device`; without a name, cuda where there is one, else cpu.

    Raises:
        ValueError: if this machine has no such device.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


def load_tokenizer(name: str):
    """Returns the tokenizer that lies beside a model; an `OSError` names the model where there is none."""
    from transformers import AutoTokenizer

    from ..bases import resolve_base

    try:
        return AutoTokenizer.from_pretrained(resolve_base(name))
    except (OSError, ValueError) as error:
        raise OSError(f"Cannot load the tokenizer of {name!r}: {error}") from error


def load_model(args: argparse.Namespace):
    """Returns model and tokenizer of `--model`, ready for inference, without the chatter of loading."""
    import torch
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    from ..bases import load_autocompressor
    from ..control_tokens import check_tokenizer

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = resolve_device(args.device)
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    model = load_autocompressor(args.model, dtype=dtype).eval()
    tokenizer = load_tokenizer(args.model)
    check_tokenizer(tokenizer, model.config)
    return model.to(device), tokenizer


def read_text(path: str) -> str:
    """
    Returns the text of a UTF-8 file, or of standard input for `-`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8, or empty.
    """
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, byte {error.start} is not.") from error
    if not text.strip():
        raise ValueError(f"{path} must hold text, it is empty.")
    return text


def token_ids(tokenizer, text: str, device):
    """Returns the tokens of a text, without special tokens: `(1, length)`."""
    return tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids.to(device)


def progress_bar():
    """A progress bar on standard error, with the time that is left; it goes away at the end, and before an error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)

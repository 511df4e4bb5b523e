"""What the sub-commands share: the model of `--model`, files in and out, progress."""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from ..files.bundled import BUNDLED_TOKENIZER


def add_model_arguments(parser: argparse.ArgumentParser, kind: str = "AutoCompressor", dtype: str = "auto"):
    parser.add_argument("--model", required=True, help=f"{kind}: a folder or a hub name")
    add_device_argument(parser)
    add_dtype_argument(parser, dtype)


def add_dtype_argument(parser: argparse.ArgumentParser, dtype: str = "auto"):
    parser.add_argument(
        "--dtype",
        default=dtype,
        choices=["auto", "float32", "bfloat16", "float16"],
        help="dtype of the weights; auto: as saved (default: %(default)s)",
    )


def add_device_argument(parser: argparse.ArgumentParser):
    parser.add_argument("--device", help="device to run on: cpu, cuda, ... (default: cuda where there is one)")


def add_output_argument(parser: argparse.ArgumentParser):
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write; - writes to standard output")


def add_codec_arguments(parser: argparse.ArgumentParser, file: str, model: str, default: str | None = None):
    """What commands that turn one file into another have in common."""
    parser.add_argument("file", help=f"{file}; - reads standard input")
    add_output_argument(parser)
    shown = f"{model}: a folder or a hub name" + (f" (default: {default})" if default else "")
    parser.add_argument("--model", default=default, required=default is None, help=shown)
    add_device_argument(parser)


def add_data_arguments(parser: argparse.ArgumentParser, default: Path, which: str):
    """The texts of a command that reads any number of them, one at a time."""
    parser.add_argument(
        "data",
        nargs="?",
        default=str(default),
        help="a txt (every line is a text), jsonl, csv or parquet file, a folder of such files, or a dataset of the"
        f" hub (default: the {which} that comes with the package)",
    )
    add_dataset_arguments(parser, "a folder or a dataset of the hub")


def add_dataset_arguments(parser: argparse.ArgumentParser, splits: str):
    """Where the texts of a dataset are; `splits` says what has some."""
    parser.add_argument("--dataset-config-name", help="configuration of a dataset of the hub")
    parser.add_argument("--split", default="train", help=f"split of {splits} (default: train)")
    parser.add_argument("--text-column", default="text", help="column that holds the texts (default: text)")


def add_tokenizer_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--tokenizer",
        default=str(BUNDLED_TOKENIZER),
        help="tokenizer: a folder or a hub name (default: the bundled one)",
    )


def add_test_set_arguments(parser: argparse.ArgumentParser, num_sequences: int):
    """What the commands that write a test set have in common."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--counts", type=Path, required=True, help="CSV file of `auto-compressor token-statistics`")
    add_tokenizer_argument(parser)
    parser.add_argument("--length", type=int, default=512, help="tokens of each sequence (default: %(default)s)")
    parser.add_argument(
        "--low-fraction",
        type=float,
        default=0.1,
        help="share of the counted tokens, the rarest, that is left out, with ties (default: %(default)s)",
    )
    parser.add_argument(
        "--num-sequences", type=int, default=num_sequences, help="most sequences to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of what is drawn at random (default: %(default)s)")


def add_budget_argument(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--max-summary-length", type=int, help="most summary vectors per segment (default: all that the model makes)"
    )


def check_installed(module: str, package: str, extra: str):
    """Raises a `ValueError` that says how to install a package which only some sub-commands need."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f'This needs {package}, which is not installed: pip install "auto-compressor[{extra}]"')


def check_output(path: Path):
    """Raises an `OSError` for a file that could not be written, before the work is done."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise IsADirectoryError(f"--output {path} must be a file, it is a folder.")
    if path.exists() and not path.is_file():
        raise OSError(f"--output {path} must be a file, it is a device or a pipe.")


def check_codec_arguments(args: argparse.Namespace):
    """Raises an `OSError` or a `ValueError` for arguments of `encode` or `decode` that cannot work."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {args.batch_size}.")
    check_files(args)


def check_files(args: argparse.Namespace):
    """Raises an `OSError` or a `ValueError` for an `--output` that cannot be made of the file that is read."""
    if str(args.output) == "-":
        return
    check_output(args.output)
    if args.output.exists() and Path(args.file).exists() and args.output.samefile(args.file):
        raise ValueError(f"--output {args.output} must be another file than the one that is read.")


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(name: str | None):
    """
    Returns the device of `--device`; without a name, cuda where there is one, else cpu.

    Raises:
        ValueError: if this machine has no such device.
    """
    import torch

    name = name or default_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


def load_tokenizer(name: str):
    """Returns the tokenizer that lies beside a model; an `OSError` names the model where there is none."""
    from ..files import loading
    from ..files.bases import resolve_tokenizer

    return loading.load_tokenizer(resolve_tokenizer(name), problem=f"Cannot load the tokenizer of {name!r}")


def silence_loading():
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # to authors of PEFT, that transformers will change


def load_with_tokenizer(args: argparse.Namespace, load: Callable):
    """Returns the model that `load` makes of `--model`, ready for inference, and its tokenizer, without chatter."""
    import torch

    from ..autocompressor.control_tokens import check_tokenizer

    silence_loading()
    device = resolve_device(args.device)
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    model = load(args.model, dtype=dtype).eval()
    tokenizer = load_tokenizer(args.model)
    check_tokenizer(tokenizer, model.config)
    return model.to(device), tokenizer


def load_model(args: argparse.Namespace, *model_types: str, option: str = "--model"):
    """
    Returns the model of `--model`, ready for inference, without the chatter of loading.

    Args:
        args (`argparse.Namespace`): With `model` and `device`.
        model_types (`str`): Kinds of models that the command takes (default: all causal language models).
        option (`str`, defaults to `"--model"`): What errors call it.

    Raises:
        OSError: if there is none, or it is damaged or incomplete.
        ValueError: if `--model` is another kind of model, or `--device` is not there.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM

    from ..files.bases import check_causal_lm, resolve_base
    from ..files.loading import load

    silence_loading()
    device, folder = resolve_device(args.device), resolve_base(args.model)
    problem = f"Cannot load the model {args.model!r}"
    config = load(AutoConfig, folder, problem=problem)
    if not model_types:
        check_causal_lm(f"{option} {args.model}", config)
    elif config.model_type not in model_types:
        kinds = " or ".join(model_types)
        raise ValueError(f"{option} {args.model} must be of the type {kinds}, it is of the type {config.model_type}.")
    auto_class = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
    return load(auto_class, folder, problem=problem, dtype="auto").eval().to(device)


def read_bytes(path: str) -> bytes:
    """Returns what a file holds, or standard input for `-`; an `OSError` if it cannot be read."""
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def file_name(path: str) -> str:
    """What errors call a file that is read."""
    return "standard input" if path == "-" else path


def print_growth(num_bytes: int, blob: bytes, to_stdout: bool):
    """Says that a file became larger, if it did."""
    if len(blob) > num_bytes:
        line = f"The file grew, from {num_bytes:,} to {len(blob):,} bytes: this model does not predict it well enough."
        print(line, file=sys.stderr if to_stdout else sys.stdout)


def write_bytes(path: Path, data: bytes):
    """Writes a file, whole or not at all, or standard output for `-`; an `OSError` if it cannot be written."""
    from ..files.whole_files import write_whole

    if str(path) != "-":
        return write_whole(path, data)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def read_text(path: str) -> str:
    """
    Returns the text of a UTF-8 file, or of standard input for `-`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8, or empty.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, byte {error.start} is not.") from error
    if not text.strip():
        raise ValueError(f"{path} must hold text, it is empty or white space.")
    return text


def token_ids(tokenizer, text: str, device):
    """Returns the tokens of a text, without special tokens: `(1, length)`."""
    return tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids.to(device)


def stream_data(args: argparse.Namespace, tokenizer, progress, description: str):
    """The texts of `add_data_arguments` with their tokens, one at a time, counted on a progress bar."""
    from datasets.utils import logging

    from ..files.text_streams import stream_rows, tokenize_rows

    logging.set_verbosity(logging.CRITICAL)  # errors are raised as well
    rows = stream_rows(args.data, args.dataset_config_name, args.split)
    rows = progress.track(rows, description=description, total=None)
    return tokenize_rows(rows, tokenizer, args.text_column)


def print_facts(facts: dict[str, str], title: str | None = None, stderr: bool = False):
    """A table of two columns, on standard error where a file goes to standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    Console(stderr=stderr).print(table)


def progress_bar():
    """A progress bar on standard error, with the time that is left; it goes away at the end, and before an error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)

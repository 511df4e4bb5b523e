"""`auto-compressor reconstruction-accuracy`: how many tokens come back from continuous latents."""

import argparse
from pathlib import Path

from ...cli.common import (
    add_data_arguments,
    add_device_argument,
    load_model,
    load_tokenizer,
    progress_bar,
    stream_data,
)
from ...files.bundled import BUNDLED_VALIDATION_TEXT


NAME = "reconstruction-accuracy"
HELP = "count the tokens that come back from the latents of a continuous text autoencoder, and write the errors"


def add_arguments(parser: argparse.ArgumentParser):
    add_data_arguments(parser, BUNDLED_VALIDATION_TEXT, "held-out text")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder to write the report to; made if it is not there"
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        help="cut the data into sequences of so many tokens, for each length anew (default: a text is a sequence)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="sequences that are reconstructed at once (default: %(default)s)"
    )
    parser.add_argument("--model", required=True, help="ContinuousTextAutoencoder: a folder or a hub name")
    parser.add_argument("--tokenizer", help="tokenizer: a folder or a hub name (default: the one beside the model)")
    add_device_argument(parser)


def print_table(results, title: str):
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("length", "sequences", "tokens", "token accuracy", "sequence accuracy"):
        table.add_column(column, justify="right")
    for result in results:
        shares = f"{result.token_accuracy:.3%}", f"{result.sequence_accuracy:.2%}"
        table.add_row(str(result.length or "any"), f"{result.sequences:,}", f"{result.tokens:,}", *shares)
    Console().print(table)


def run(args: argparse.Namespace):
    for name, values in (("--lengths", args.lengths or []), ("--batch-size", [args.batch_size])):
        if min(values, default=1) < 1:
            raise ValueError(f"{name} must be 1 or more, got {min(values)}.")
    if args.output.exists() and not args.output.is_dir():
        raise NotADirectoryError(f"--output {args.output} must be a folder, it is a file.")
    model = load_model(args, "continuous_text_autoencoder")
    tokenizer = load_tokenizer(args.tokenizer or args.model)

    from ..accuracy_report import write_report

    with progress_bar() as progress:

        def read_texts():
            return stream_data(args, tokenizer, progress, "Reconstructing")

        results = write_report(args.output, model, tokenizer, read_texts, args.lengths or [None], args.batch_size)
    print_table(results, f"Tokens that come back from {args.model}")

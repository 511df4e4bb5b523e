"""`auto-compressor check-causality`: whether a language model sees nothing that comes later, on every path."""

import argparse
from functools import partial

from ..files.bundled import BUNDLED_VALIDATION_TEXT
from .common import add_model_arguments, load_with_tokenizer, progress_bar, read_text, token_ids


NAME = "check-causality"
HELP = "check that no logits depend on later tokens, with and without cache; exit status 1 if one does"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--text", default=str(BUNDLED_VALIDATION_TEXT), help="UTF-8 text to read (default: the bundled held-out one)"
    )
    parser.add_argument(
        "--length", type=int, default=256, help="tokens of a row, every one of which is checked (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=2,
        help="rows that are checked, the first ones of the text (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the tokens that replace the later ones (default: %(default)s)"
    )
    # In half precision some models turn the last bits of early tokens into quite other logits.
    add_model_arguments(parser, "causal language model", dtype="float32")


def first_rows(input_ids, length: int, batch_size: int, max_length: int | None):
    """Cuts `(1, length of the text)` into `(batch_size, length)`, shorter where text or model hold less."""
    length = min(length, input_ids.shape[1] // batch_size, max_length or length)
    if length < 2:
        raise ValueError(f"The text must hold {batch_size} rows of 2 tokens, it has {input_ids.shape[1]} tokens.")
    return input_ids[0, : batch_size * length].view(batch_size, length)


def print_table(checks, shape):
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{shape[0]} texts of {shape[1]} tokens, at every position")
    for column, justify in (("path", "left"), ("largest difference", "right"), ("at", "right"), ("", "left")):
        table.add_column(column, justify=justify)
    table.add_column("rounding", justify="right")
    for check in checks:
        verdict = "refused" if check.refusal else "LEAKS" if check.leaks else "ok"
        figures = ["", ""] if check.refusal else [f"{check.difference:.2e}", f"{check.position}"]
        table.add_row(check.path, *figures, verdict, f"{check.threshold:.2e}")
    Console().print(table)


def run(args: argparse.Namespace):
    from ..autocompressor.bases import load_language_model

    for name, value, least in (("--length", args.length, 2), ("--batch-size", args.batch_size, 1)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}.")
    text = read_text(args.text)
    model, tokenizer = load_with_tokenizer(args, load_language_model)

    from ..evaluation.causality import check_causality

    max_length = getattr(model.config, "max_position_embeddings", None)
    input_ids = first_rows(token_ids(tokenizer, text, model.device), args.length, args.batch_size, max_length)
    with progress_bar() as bar:
        checks = check_causality(model, input_ids, args.seed, partial(bar.track, description="Checking"))
    print_table(checks, input_ids.shape)
    for check in checks:
        if check.leaks:
            raise ValueError(
                f"{args.model}: on the path {check.path!r} the logits of position {check.position} differ by"
                f" {check.difference:.2e}, more than rounding explains ({check.threshold:.2e}): later tokens leak into"
                " them, or earlier ones are lost."
            )

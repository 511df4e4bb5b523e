"""`auto-compressor perplexity`: what a context is worth as tokens, as summary vectors, and not at all."""

import argparse
import csv
from pathlib import Path

from ...cli.common import (
    add_budget_argument,
    add_model_arguments,
    load_with_tokenizer,
    progress_bar,
    read_text,
    token_ids,
)
from ...files.bundled import BUNDLED_VALIDATION_TEXT


NAME = "perplexity"
HELP = "compare predictions without context, with its summary vectors, and with all of it"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--segment-lengths",
        type=int,
        nargs="+",
        help="tokens of each segment; the last one is predicted (default: four as long as the model was trained with)",
    )
    parser.add_argument(
        "--text",
        default=str(BUNDLED_VALIDATION_TEXT),
        help="UTF-8 text to predict (default: the bundled held-out one)",
    )
    parser.add_argument(
        "--full-context-model", help="model that reads the whole context, for comparison (default: --model)"
    )
    parser.add_argument(
        "--max-sequences",
        type=int,
        help="use only so many sequences of the text, the first ones, 2 or more (default: all)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="sequences that are read at once, 2 or more (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", type=Path, help="also write the table as CSV")
    add_budget_argument(parser)
    add_model_arguments(parser)


def cut_sequences(input_ids, length: int, max_sequences: int | None, batch_size: int):
    """Cuts `(1, length of the text)` into batches of sequences; a last batch of one row is left out."""
    sequences = input_ids[0, : input_ids.shape[1] // length * length].view(-1, length)[:max_sequences]
    batches = [batch for batch in sequences.split(batch_size) if batch.shape[0] > 1]
    if not batches:
        raise ValueError(f"The text must hold 2 sequences of {length} tokens, it has {input_ids.shape[1]} tokens.")
    return batches


def default_segment_lengths(config) -> list[int]:
    """Three segments of context and one that is predicted, as in training. A `ValueError` if they are not known."""
    if config.segment_length is None:
        raise ValueError("--segment-lengths must be given: the config of the model has no `segment_length`.")
    return [config.segment_length] * 4


def print_table(results):
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Predicting {results[0].tokens:,} tokens")
    for column, justify in (
        ("context", "left"),
        ("positions", "right"),
        ("perplexity", "right"),
        ("accuracy", "right"),
    ):
        table.add_column(column, justify=justify)
    for result in results:
        table.add_row(result.context, f"{result.positions:.3g}", f"{result.perplexity:.2f}", f"{result.accuracy:.2%}")
    Console().print(table)


def write_results(results, path: Path):
    """Writes the figures as CSV, whole or not at all."""
    from ...files.whole_files import whole_file

    with whole_file(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["context", "positions", "perplexity", "accuracy", "tokens"])
        writer.writerows([r.context, r.positions, r.perplexity, r.accuracy, r.tokens] for r in results)


def run(args: argparse.Namespace):
    from ..bases import load_autocompressor
    from ..context import compare_contexts

    if args.batch_size < 2:
        raise ValueError(f"--batch-size must be 2 or more, got {args.batch_size}.")
    if args.max_sequences is not None and args.max_sequences < 2:
        raise ValueError(
            "--max-sequences must be 2 or more, the control exchanges the summary vectors of two texts, got"
            f" {args.max_sequences}."
        )
    text = read_text(args.text)
    model, tokenizer = load_with_tokenizer(args, load_autocompressor)
    segment_lengths, full = args.segment_lengths or default_segment_lengths(model.config), None
    if args.full_context_model:
        full_context = argparse.Namespace(**vars(args) | {"model": args.full_context_model})
        full, _ = load_with_tokenizer(full_context, load_autocompressor)
    input_ids = token_ids(tokenizer, text, model.device)
    batches = cut_sequences(input_ids, sum(segment_lengths), args.max_sequences, args.batch_size)
    with progress_bar() as progress:
        batches = progress.track(batches, description="Predicting")
        results = compare_contexts(model, batches, segment_lengths, full, args.max_summary_length)
    print_table(results)
    if args.output is not None:
        write_results(results, args.output)

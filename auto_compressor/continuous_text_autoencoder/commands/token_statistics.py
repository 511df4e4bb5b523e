"""`auto-compressor token-statistics`: how often each token occurs in any dataset."""

import argparse
from pathlib import Path

from ...cli.common import (
    add_data_arguments,
    add_tokenizer_argument,
    check_output,
    load_tokenizer,
    print_facts,
    progress_bar,
    stream_data,
)
from ...files.bundled import BUNDLED_TRAIN_TEXT


NAME = "token-statistics"
HELP = "count the tokens of a dataset, which is streamed, and write the CSV token_id,count"


def add_arguments(parser: argparse.ArgumentParser):
    add_data_arguments(parser, BUNDLED_TRAIN_TEXT, "training text")
    parser.add_argument("-o", "--output", type=Path, required=True, help="CSV file to write")
    add_tokenizer_argument(parser)


def run(args: argparse.Namespace):
    check_output(args.output)
    tokenizer = load_tokenizer(args.tokenizer)

    from ..token_sets import token_statistics, write_statistics

    with progress_bar() as progress:
        counts = token_statistics(ids for _, ids in stream_data(args, tokenizer, progress, "Counting"))
    if not counts:
        raise ValueError(f"{args.data} must hold text, it has no tokens.")
    write_statistics(args.output, counts)
    used = f"{len(counts):,} of {len(tokenizer):,}"
    print_facts({"file": str(args.output), "tokens": f"{sum(counts.values()):,}", "vocabulary seen": used})

"""`auto-compressor filtered-test-set`: windows of texts without rare tokens."""

import argparse
from collections import Counter

from ...cli.common import (
    add_data_arguments,
    add_test_set_arguments,
    check_output,
    load_tokenizer,
    print_facts,
    progress_bar,
    stream_data,
)
from ...files.bundled import BUNDLED_VALIDATION_TEXT


NAME = "filtered-test-set"
HELP = "write a test set of windows of texts that hold no unseen and no low-frequency token"


def add_arguments(parser: argparse.ArgumentParser):
    add_data_arguments(parser, BUNDLED_VALIDATION_TEXT, "held-out text")
    add_test_set_arguments(parser, num_sequences=5000)


def kept_windows(judged, outcomes: Counter):
    """The windows that are kept; what became of every text is counted in `outcomes`."""
    from ..token_sets import KEPT

    for outcome, window in judged:
        outcomes[outcome] += 1
        if outcome == KEPT:
            yield window
    if not outcomes[KEPT]:
        found = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
        raise ValueError(f"No text is left; there were {found or 'none'}.")


def run(args: argparse.Namespace):
    check_output(args.output)
    tokenizer = load_tokenizer(args.tokenizer)

    from ..token_sets import filter_sequences, read_statistics, write_test_set

    counts, outcomes = read_statistics(args.counts, len(tokenizer)), Counter()
    sizes = (args.length, args.low_fraction, args.num_sequences, args.seed)
    with progress_bar() as progress:
        sequences = (ids for _, ids in stream_data(args, tokenizer, progress, "Filtering"))
        judged = filter_sequences(sequences, counts, *sizes)
        write_test_set(args.output, kept_windows(judged, outcomes), tokenizer)
    facts = {"file": str(args.output), "texts read": f"{outcomes.total():,}"}
    print_facts(facts | {outcome: f"{count:,}" for outcome, count in outcomes.most_common()})

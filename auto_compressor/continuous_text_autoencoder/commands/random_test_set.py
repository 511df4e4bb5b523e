"""`auto-compressor random-test-set`: sequences in which no token says anything about another."""

import argparse

from ...cli.common import add_test_set_arguments, check_output, load_tokenizer, print_facts, progress_bar


NAME = "random-test-set"
HELP = "write a test set of random tokens, all but the low-frequency ones, each as likely as any other"


def add_arguments(parser: argparse.ArgumentParser):
    add_test_set_arguments(parser, num_sequences=1000)


def run(args: argparse.Namespace):
    check_output(args.output)
    tokenizer = load_tokenizer(args.tokenizer)

    from ..token_sets import frequent_tokens, random_sequences, read_statistics, write_test_set

    counts = read_statistics(args.counts, len(tokenizer))
    sequences = random_sequences(counts, args.num_sequences, args.length, args.low_fraction, args.seed)
    with progress_bar() as progress:
        sequences = progress.track(sequences, description="Writing", total=args.num_sequences)
        write_test_set(args.output, sequences, tokenizer)
    size = f"{args.num_sequences:,} of {args.length:,} tokens"
    drawn = f"{len(frequent_tokens(counts, args.low_fraction)):,} of {len(counts):,}"
    print_facts({"file": str(args.output), "sequences": size, "tokens to draw from": drawn})

"""The command `auto-compressor`: one module per sub-command, each with NAME, HELP, add_arguments() and run()."""

import argparse
import sys
from collections.abc import Sequence

from . import (
    check_causality,
    compress,
    convert,
    decode,
    decompress,
    encode,
    evaluate,
    filtered_test_set,
    generate,
    perplexity,
    random_test_set,
    reconstruction_accuracy,
    report_activation,
    show_borders,
    summarize,
    token_statistics,
    view_errors,
)


COMMANDS = (summarize, generate, perplexity, encode, decode, compress, decompress)
COMMANDS += (convert, check_causality, show_borders, report_activation, evaluate)
COMMANDS += (token_statistics, filtered_test_set, random_test_set, reconstruction_accuracy, view_errors)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command. Returns 0, or 1 after an error of one line, or 130 after an interruption."""
    parser = argparse.ArgumentParser(prog="auto-compressor", description="Compress text for language models.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown and "further" not in args:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.further = unknown  # for the one command that hands them on
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())
        print(f"auto-compressor: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

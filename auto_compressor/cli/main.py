"""The command `auto-compressor`: one module per sub-command, each with NAME, HELP, add_arguments() and run()."""

import argparse
import sys
from collections.abc import Sequence

from ..activation_compressor.commands import report_activation
from ..autocompressor.commands import generate, perplexity, summarize
from ..byte_lm.commands import compress, decompress
from ..continuous_text_autoencoder.commands import (
    filtered_test_set,
    random_test_set,
    reconstruction_accuracy,
    token_statistics,
    view_errors,
)
from ..hierarchical_autoencoder.commands import decode, encode
from . import check_causality, convert, evaluate, show_borders, train


COMMANDS = (train, summarize, generate, perplexity, encode, decode, compress, decompress)
COMMANDS += (convert, check_causality, show_borders, report_activation, evaluate)
COMMANDS += (token_statistics, filtered_test_set, random_test_set, reconstruction_accuracy, view_errors)


class ShowVersion(argparse.Action):
    """Looks the version up when it is asked for: other commands need not wait, nor be installed."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib import metadata

        try:
            print(parser.prog, metadata.version("auto-compressor"))
        except metadata.PackageNotFoundError:
            parser.error("the package auto-compressor must be installed for --version")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command. Returns 0, or 1 after an error of one line, or 130 after an interruption."""
    parser = argparse.ArgumentParser(prog="auto-compressor", description="Compress text for language models.")
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show the version of the package and exit")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        options = getattr(command, "PARSER", {})
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP, **options)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown and "further" not in args:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.further = unknown  # for the commands that hand them on
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

"""The command `auto-compressor`: one module per sub-command, each with NAME, HELP, add_arguments() and run()."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..families import FAMILIES, module_of
from ..files.names import check_utf8
from . import check_causality, compress, convert, decompress, evaluate, info, offline_tasks, show_borders, train


# title -> sub-commands
SHARED = (train, compress, decompress, info, evaluate, offline_tasks, convert, show_borders, check_causality)
GROUPS = {"All families": SHARED}
for family in FAMILIES:
    commands = module_of(family, "commands")
    if commands.COMMANDS:
        GROUPS[commands.TITLE] = commands.COMMANDS
COMMANDS = [command for commands in GROUPS.values() for command in commands]


def overview() -> str:
    """What `--help` lists."""
    width = max(len(command.NAME) for command in COMMANDS)
    parts = []
    for title, commands in GROUPS.items():
        lines = (f"  {command.NAME:{width}}  {command.HELP}" for command in commands)
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)


class ShowVersion(argparse.Action):
    """Looks the version up when it is asked for: other commands need not wait, nor be installed."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib import metadata

        try:
            print(parser.prog, metadata.version("auto-compressor"))
        except metadata.PackageNotFoundError:
            parser.error("the package auto-compressor must be installed for --version")
        parser.exit()


def check_arguments(argv: Sequence[str]):
    """Raises a `ValueError` for an argument that was not UTF-8, unless it names a file: it is no text of a model."""
    for argument in argv:
        if not Path(argument).exists():
            check_utf8("All arguments", argument)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command. Returns 0, or 1 after an error of one line, or 130 after an interruption."""
    parser = argparse.ArgumentParser(
        prog="auto-compressor",
        description="Compress text for language models.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show the version of the package and exit")
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", help="one of the commands below; COMMAND --help describes it"
    )
    for command in COMMANDS:
        options = getattr(command, "PARSER", {})
        subparser = subparsers.add_parser(command.NAME, description=command.HELP, **options)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown and "further" not in args:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.further = unknown  # for the commands that hand them on
    try:
        check_arguments(sys.argv[1:] if argv is None else argv)
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

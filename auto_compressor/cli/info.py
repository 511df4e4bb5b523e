"""`auto-compressor info`: what a file that this package made of another one says about itself."""

import argparse
import json

from ..families import FAMILIES, module_of
from ..lossless.commands import info_lossless
from .common import file_name, print_facts, read_bytes


NAME = "info"
HELP = "print what a compressed file, a file of codes, of summary vectors or of latents says about itself"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("file", help="the file; - reads standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of a table")


def describe(blob: bytes, name: str) -> dict:
    """
    The facts of a file.

    Raises:
        ValueError: for a damaged file, or one that this package did not make.
    """
    readers = [getattr(module_of(family, "commands"), "INFO", None) for family in FAMILIES]
    for reader in filter(None, [info_lossless, *readers]):
        if reader.reads(blob):
            return reader.facts(blob, name)

    from ..files.vector_file import vector_facts

    return vector_facts(blob, name)


def run(args: argparse.Namespace):
    blob = read_bytes(args.file)
    facts = {"file_bytes": len(blob), **describe(blob, file_name(args.file))}
    if args.json:
        print(json.dumps(facts))
    else:
        print_facts({key.replace("_", " "): str(value) for key, value in facts.items()})

"""`auto-compressor decompress`: the file that `auto-compressor compress` compressed, bit for bit."""

import argparse
from functools import partial

from ...cli.common import (
    add_byte_lm_arguments,
    check_files,
    check_installed,
    file_name,
    load_byte_lm,
    progress_bar,
    read_bytes,
    write_bytes,
)


NAME = "decompress"
HELP = "restore a file from what `compress` made of it"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("file", help="file that `compress` wrote with the same model; - reads standard input")
    add_byte_lm_arguments(parser)


def run(args: argparse.Namespace):
    check_installed("constriction", "constriction", "codec")
    check_files(args)
    blob = read_bytes(args.file)

    from ..codec import decompress_bytes, read_header

    name = file_name(args.file)
    read_header(blob, name)  # what is no such file needs no model
    model = load_byte_lm(args)
    with progress_bar() as bar:
        data = decompress_bytes(model, blob, partial(bar.track, description="Decompressing"), name)
    write_bytes(args.output, data)

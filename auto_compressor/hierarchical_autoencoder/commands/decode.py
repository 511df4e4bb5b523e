"""`auto-compressor decode`: the bytes of a file of `auto-compressor encode`."""

import argparse
from functools import partial

from ...cli.common import (
    add_codec_arguments,
    check_codec_arguments,
    check_installed,
    file_name,
    load_model,
    progress_bar,
    read_bytes,
    write_bytes,
)


NAME = "decode"
HELP = "restore a file from what `encode` made of it"


KIND = "hierarchical byte autoencoders"


def add_arguments(parser: argparse.ArgumentParser):
    add_codec_arguments(parser, "file that `encode` wrote with the same model", "HierarchicalAutoencoder")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser):
    """What `decompress` takes for these models beside file, output, model and device."""
    parser.add_argument(
        "--batch-size", type=int, default=32, help="blocks that are read at once (default: %(default)s)"
    )


def run(args: argparse.Namespace):
    check_codec_arguments(args)
    blob = read_bytes(args.file)

    from ..codec import decode_bytes, read_header

    name = file_name(args.file)
    if read_header(blob, name).version > 1:  # what is no such file needs no model
        check_installed("constriction", "constriction", "codec")
    model = load_model(args, "hierarchical_autoencoder")
    with progress_bar() as bar:
        data = decode_bytes(model, blob, args.batch_size, partial(bar.track, description="Decoding"), name)
    write_bytes(args.output, data)

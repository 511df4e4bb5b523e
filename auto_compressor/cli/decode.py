"""`auto-compressor decode`: the bytes of a file of `auto-compressor encode`."""

import argparse
from functools import partial

from .common import add_codec_arguments, check_codec_arguments, load_autoencoder, progress_bar, read_bytes, write_bytes


NAME = "decode"
HELP = "restore a file from what `encode` made of it"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("file", help="what `encode` wrote, with the same model; - reads standard input")
    add_codec_arguments(parser)


def run(args: argparse.Namespace):
    check_codec_arguments(args)
    blob = read_bytes(args.file)
    model = load_autoencoder(args)

    from ..byte_codec import decode_bytes

    with progress_bar() as bar:
        data = decode_bytes(model, blob, args.batch_size, partial(bar.track, description="Decoding"))
    write_bytes(args.output, data)

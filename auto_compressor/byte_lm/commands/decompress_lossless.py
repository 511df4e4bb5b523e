"""`auto-compressor decompress` with a language model of bytes: the file that was compressed, bit for bit."""

import argparse
from functools import partial

from ...cli.common import (
    check_files,
    check_installed,
    file_name,
    load_model,
    progress_bar,
    read_bytes,
    write_bytes,
)


KIND = "language models of bytes"


def add_options(parser: argparse.ArgumentParser):
    """What `decompress` takes for these models beside file, output, model and device: nothing."""


def run(args: argparse.Namespace):
    check_installed("constriction", "constriction", "codec")
    check_files(args)
    blob = read_bytes(args.file)

    from ..codec import decompress_bytes, read_header
    from ..integer_codec import MODEL_TYPES, decompress_integers

    name = file_name(args.file)
    # What is no such file needs no model.
    decompress = decompress_integers if read_header(blob, name).model_type in MODEL_TYPES else decompress_bytes
    model = load_model(args)
    with progress_bar() as bar:
        data = decompress(model, blob, partial(bar.track, description="Decompressing"), name)
    write_bytes(args.output, data)

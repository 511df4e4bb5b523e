"""`auto-compressor decompress` with a ContinuousTextAutoencoder: the text of latents."""

import argparse

from ...cli.common import check_files, write_bytes
from .compress_text import load_with_its_tokenizer


KIND = "continuous text autoencoders"


def add_options(parser: argparse.ArgumentParser):
    """What `decompress` takes for these models beside file, output, model and device."""


def run(args: argparse.Namespace):
    from ..latents import load_latents

    if args.file == "-":
        raise ValueError("FILE must be a file of latents, they are not read from standard input.")
    check_files(args)
    model, tokenizer = load_with_its_tokenizer(args)
    latents, num_tokens = load_latents(args.file, model)
    tokens = model.decode_tokens(latents)[0, :num_tokens]  # (num_tokens,)
    write_bytes(args.output, tokenizer.decode(tokens, clean_up_tokenization_spaces=False).encode())

"""`auto-compressor convert`: a published checkpoint to a folder that `from_pretrained` loads."""

import argparse

from .common import silence_loading


NAME = "convert"
HELP = "convert a published checkpoint to a folder that from_pretrained loads"
FAMILIES = ("adaptive_byte", "gru_byte", "continuous_text_autoencoder")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--family", required=True, choices=FAMILIES, help="family of the published checkpoint")
    parser.add_argument(
        "source", help="checkpoint to convert: a .pt file, or a folder with config.json and model.safetensors"
    )
    parser.add_argument("target", help="folder to write, new or empty")


def run(args: argparse.Namespace):
    from ..published import convert_checkpoint

    silence_loading()
    model = convert_checkpoint(args.family, args.source, args.target)
    print(f"{args.target}: {args.family}, {model.num_parameters():,} parameters")

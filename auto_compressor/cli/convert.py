"""`auto-compressor convert`: a published checkpoint to a folder that `from_pretrained` loads."""

import argparse

from ..families import FAMILIES, families_with
from .common import silence_loading


NAME = "convert"
HELP = "convert a published checkpoint to a folder that from_pretrained loads"
MODEL_TYPES = [model_type for family in families_with("published") for model_type in FAMILIES[family]]


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--family", required=True, choices=MODEL_TYPES, help="family of the published checkpoint")
    parser.add_argument(
        "source", help="checkpoint to convert: a .pt file, or a folder with config.json and model.safetensors"
    )
    parser.add_argument("target", help="folder to write, new or empty")


def run(args: argparse.Namespace):
    from ..published import convert_checkpoint

    silence_loading()
    model = convert_checkpoint(args.family, args.source, args.target)
    print(f"{args.target}: {args.family}, {model.num_parameters():,} parameters")

"""`auto-compressor export-base`: the plain base model of an AutoCompressor, for vLLM and other engines."""

import argparse

from ...cli.common import add_dtype_argument, load_with_tokenizer


NAME = "export-base"
HELP = "write the plain base model of an AutoCompressor, with its tokenizer, for vLLM and other engines"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", help="AutoCompressor or LoRA adapters, which are merged: a folder or a hub name")
    parser.add_argument("target", help="folder to write, new or empty")
    add_dtype_argument(parser)
    parser.set_defaults(device="cpu")


def run(args: argparse.Namespace):
    from ...files.whole_files import check_new_folder
    from ..bases import load_autocompressor
    from ..serving import export_base

    check_new_folder(args.target)
    model, tokenizer = load_with_tokenizer(args, load_autocompressor)
    export_base(model, tokenizer, args.target)
    print(f"{args.target}: {model.config.base_model_type}, {str(model.dtype).removeprefix('torch.')}")

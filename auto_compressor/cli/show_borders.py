"""`auto-compressor show-borders`: a web page of where a model sets borders in a text."""

import argparse
from pathlib import Path

from .common import add_device_argument, add_output_argument, check_files, load_model, read_bytes, write_bytes


NAME = "show-borders"
HELP = "write a web page that shows a text with the entropies and the patches of a model, level by level"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--text", dest="file", required=True, help="file to show, of any kind; - reads standard input")
    parser.add_argument(
        "--max-bytes", type=int, default=2000, help="show only so many bytes, the first ones (default: %(default)s)"
    )
    add_output_argument(parser)
    parser.add_argument(
        "--model", required=True, help="adaptive_byte or hierarchical_autoencoder: a folder or a hub name"
    )
    add_device_argument(parser)


def run(args: argparse.Namespace):
    if args.max_bytes < 1:
        raise ValueError(f"--max-bytes must be 1 or more, got {args.max_bytes}.")
    check_files(args)
    data = read_bytes(args.file)[: args.max_bytes]
    if not data:
        raise ValueError(f"{args.file} must hold text, it is empty.")
    model = load_model(args, "adaptive_byte", "hierarchical_autoencoder")

    from ..evaluation.borders import text_borders
    from ..evaluation.borders_page import borders_page

    title = "Borders of standard input" if args.file == "-" else f"Borders of {Path(args.file).name}"
    page = borders_page(text_borders(model, data), title)
    write_bytes(args.output, page.encode("utf-8", "replace"))

"""`auto-compressor view-errors`: a web page of the texts that did not come back whole."""

import argparse
import os
from pathlib import Path

from ...cli.common import check_installed


NAME = "view-errors"
HELP = "serve a web page that shows, case by case, how reconstructions differ from their texts"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("file", type=Path, help="error_cases.jsonl of `auto-compressor reconstruction-accuracy`")
    parser.add_argument("--port", type=int, default=7860, help="port to serve on (default: %(default)s)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on (default: %(default)s); any other shows the page to the network",
    )


def run(args: argparse.Namespace):
    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {args.port}.")
    check_installed("gradio", "gradio", "viz")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

    from ..error_viewer import error_viewer, launch_options

    page = error_viewer(args.file)
    page.launch(server_name=args.host, server_port=args.port, **launch_options(args.host))

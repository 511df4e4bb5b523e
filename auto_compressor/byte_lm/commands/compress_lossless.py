"""`auto-compressor compress` with a language model of bytes: any file into fewer bits, by what the model predicts."""

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING

from ...cli.common import (
    check_files,
    check_installed,
    load_model,
    print_facts,
    print_growth,
    progress_bar,
    read_bytes,
    write_bytes,
)


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..codec import Progress

KIND = "language models of bytes: any file, without loss"


def add_options(parser: argparse.ArgumentParser):
    """What `compress` takes for these models beside file, output, model and device."""
    parser.add_argument(
        "--streams",
        "--num-streams",
        dest="num_streams",
        type=int,
        help="parts of the file that are coded side by side: more are faster, fewer make a smaller file (default: one"
        " per KiB, 64 at most)",
    )
    parser.add_argument(
        "--window",
        type=int,
        help="bytes of context after which the model starts again (default: what it can hold, or all)",
    )


def print_summary(blob: bytes, args: argparse.Namespace, seconds: float):
    from ..codec import read_header

    header, to_stdout = read_header(blob), str(args.output) == "-"
    num_bytes = max(header.num_bytes, 1)
    facts = {
        "file": "standard output" if to_stdout else str(args.output),
        "bytes in / of file": f"{header.num_bytes:,} / {len(blob):,}",
        "bits per byte of the model": f"{header.ideal_bits / num_bytes:.4f}",
        "bits per byte of the file": f"{8 * len(blob) / num_bytes:.4f}",
        "compression ratio": f"{header.num_bytes / len(blob):.2f}x",
        "streams": f"{header.num_streams:,} of {header.num_steps:,} bytes",
        "seconds (bytes/s)": f"{seconds:.1f} ({header.num_bytes / seconds:,.0f})",
    }
    print_facts(facts, stderr=to_stdout)
    print_growth(header.num_bytes, blob, to_stdout)


def compress(model: "PreTrainedModel", data: bytes, args: argparse.Namespace, progress: "Progress") -> bytes:
    """In whole numbers where there is a program for it, which has no window: all others in float64."""
    from ..codec import compress_bytes
    from ..integer_codec import compress_integers

    if model.config.model_type == "gru_byte" and args.window is None:
        return compress_integers(model, data, args.num_streams, progress)
    return compress_bytes(model, data, args.num_streams, args.window, progress)


def run(args: argparse.Namespace):
    check_installed("constriction", "constriction", "codec")
    check_files(args)
    data = read_bytes(args.file)
    model = load_model(args)

    start = time.perf_counter()
    with progress_bar() as bar:
        blob = compress(model, data, args, partial(bar.track, description="Compressing"))
    seconds = time.perf_counter() - start
    write_bytes(args.output, blob)
    print_summary(blob, args, seconds)

"""`auto-compressor compress` with a language model: any file into fewer bits, by what the model predicts."""

import argparse
import time

from ...cli.common import check_files, check_installed, print_growth, read_bytes, write_bytes
from .common import add_json_argument, codec_of, coding_progress, load_with_symbols, print_figures


KIND = "causal language models, of tokens or of bytes: any file, without loss"
SPEEDS = {
    "--fast": "more and shorter streams, less context: a larger file in less time",
    "--best": "fewer and longer streams, more context: a smaller file in more time",
}


def add_options(parser: argparse.ArgumentParser):
    """What `compress` takes for these models beside file, output, model and device."""
    speeds = parser.add_mutually_exclusive_group()
    for flag, text in SPEEDS.items():
        speed = flag.removeprefix("--")
        speeds.add_argument(flag, dest="speed", action="store_const", const=speed, default="normal", help=text)
    parser.add_argument(
        "--streams",
        "--num-streams",
        dest="num_streams",
        type=int,
        help="parts of the file that are coded side by side: more are faster, fewer make a smaller file (default: one"
        " per 2,048 tokens, 32 at most; of a model of bytes one per KiB, 64 at most)",
    )
    parser.add_argument(
        "--window",
        type=int,
        help="tokens of context that the model holds (default: 1,024; bytes of a model of bytes: 2,048; or what it can"
        " hold)",
    )
    add_json_argument(parser)


def print_summary(blob: bytes, args: argparse.Namespace, seconds: float):
    from ..header import read_header

    header = read_header(blob)
    num_bytes, name = max(header.num_bytes, 1), "standard output" if str(args.output) == "-" else str(args.output)
    figures = {
        "file": name,
        "num_bytes": header.num_bytes,
        "file_bytes": len(blob),
        "model_bits_per_byte": header.ideal_bits / num_bytes,
        "file_bits_per_byte": 8 * len(blob) / num_bytes,
        "num_symbols": header.num_symbols,
        "num_streams": header.num_streams,
        "window": header.window,
        "seconds": seconds,
        "bytes_per_second": header.num_bytes / seconds,
    }
    table = {
        "file": name,
        "bytes in / of file": f"{header.num_bytes:,} / {len(blob):,}",
        "bits per byte of the model": f"{figures['model_bits_per_byte']:.4f}",
        "bits per byte of the file": f"{figures['file_bits_per_byte']:.4f}",
        "compression ratio": f"{header.num_bytes / len(blob):.2f}x",
        "streams": f"{header.num_streams:,} of {header.num_steps:,} symbols",
        "seconds (bytes/s)": f"{seconds:.1f} ({figures['bytes_per_second']:,.0f})",
    }
    print_figures(figures, table, args)
    print_growth(header.num_bytes, blob, str(args.output) == "-" or args.json)


def run(args: argparse.Namespace):
    check_installed("constriction", "constriction", "codec")
    check_files(args)
    data = read_bytes(args.file)
    model, tokenizer = load_with_symbols(args)
    codec, start = codec_of(model.config.model_type), time.perf_counter()
    with coding_progress("Compressing") as progress:
        blob = codec.compress_bytes(model, data, args.num_streams, args.window, progress, tokenizer, args.speed)
    seconds = time.perf_counter() - start
    write_bytes(args.output, blob)
    print_summary(blob, args, seconds)

"""`auto-compressor encode`: any file into the codes of a HierarchicalAutoencoder, with or without loss."""

import argparse
import time
from functools import partial

from ...cli.common import (
    add_codec_arguments,
    check_codec_arguments,
    check_installed,
    load_model,
    print_facts,
    print_growth,
    progress_bar,
    read_bytes,
    write_bytes,
)


NAME = "encode"
HELP = "compress a file of any kind to the codes of a hierarchical autoencoder"


KIND = "hierarchical byte autoencoders: any file to codes, from which most of it or all comes back"


def add_arguments(parser: argparse.ArgumentParser):
    add_codec_arguments(parser, "file to compress, of any kind", "HierarchicalAutoencoder")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser):
    """What `compress` takes for these models beside file, output, model and device."""
    parser.add_argument(
        "--lossless", action="store_true", help="also store what the codes leave to know, so that all comes back"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="blocks that are read at once (default: %(default)s)"
    )


def print_summary(blob: bytes, args: argparse.Namespace, seconds: float):
    from ..codec import read_header

    header, to_stdout = read_header(blob), str(args.output) == "-"
    num_bytes = max(header.num_bytes, 1)
    parts = zip(("counts of codes", "codes", "what they leave to know"), header.streams, strict=False)
    facts = {
        "file": "standard output" if to_stdout else str(args.output),
        "bytes in / of file": f"{header.num_bytes:,} / {len(blob):,}",
        "bits per byte": f"{8 * len(blob) / num_bytes:.2f}",
        "of these": ", ".join(f"{name} {8 * length / num_bytes:.3f}" for name, (_, length) in parts),
        "codes": f"{header.num_codes:,}",
        "bytes per code": f"{header.num_bytes / max(header.num_codes, 1):.2f}",
        "bytes of patches that come back": "all" if header.lossless else f"{header.right_bytes / num_bytes:.2%}",
        "seconds (bytes/s)": f"{seconds:.1f} ({header.num_bytes / seconds:,.0f})",
    }
    print_facts(facts, stderr=to_stdout)
    print_growth(header.num_bytes, blob, to_stdout)


def run(args: argparse.Namespace):
    check_codec_arguments(args)
    if args.lossless:
        check_installed("constriction", "constriction", "codec")
    data = read_bytes(args.file)
    model = load_model(args, "hierarchical_autoencoder")

    from ..codec import encode_bytes

    start = time.perf_counter()
    with progress_bar() as bar:
        blob = encode_bytes(model, data, args.lossless, args.batch_size, partial(bar.track, description="Encoding"))
    seconds = time.perf_counter() - start
    write_bytes(args.output, blob)
    print_summary(blob, args, seconds)

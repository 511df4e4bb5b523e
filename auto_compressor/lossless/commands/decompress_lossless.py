"""`auto-compressor decompress` with a language model: the file that was compressed, bit for bit."""

import argparse
import time

from ...cli.common import check_files, check_installed, file_name, read_bytes, write_bytes
from .common import add_json_argument, codec_of, coding_progress, load_with_symbols, print_figures


KIND = "causal language models, of tokens or of bytes"


def add_options(parser: argparse.ArgumentParser):
    """What `decompress` takes for these models beside file, output, model and device."""
    add_json_argument(parser)


def run(args: argparse.Namespace):
    check_installed("constriction", "constriction", "codec")
    check_files(args)
    blob = read_bytes(args.file)

    from ..header import read_header

    name = file_name(args.file)
    read_header(blob, name)  # what is no such file needs no model
    model, tokenizer = load_with_symbols(args)
    codec, start = codec_of(model.config.model_type), time.perf_counter()
    with coding_progress("Decompressing") as progress:
        data = codec.decompress_bytes(model, blob, progress, name, tokenizer)
    seconds = time.perf_counter() - start
    write_bytes(args.output, data)
    output = "standard output" if str(args.output) == "-" else str(args.output)
    rate = len(data) / seconds
    figures = {"file": output, "num_bytes": len(data), "seconds": seconds, "bytes_per_second": rate}
    table = {"file": output, "bytes": f"{len(data):,}", "seconds (bytes/s)": f"{seconds:.1f} ({rate:,.0f})"}
    print_figures(figures, table, args)

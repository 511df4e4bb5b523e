"""`auto-compressor summarize`: a text of any length into a file of summary vectors."""

import argparse
import time
from functools import partial
from pathlib import Path

from ...cli.common import (
    add_budget_argument,
    add_codec_arguments,
    add_dtype_argument,
    check_output,
    load_with_tokenizer,
    print_facts,
    progress_bar,
    read_text,
    token_ids,
)


NAME = "summarize"
HELP = "compress a text of any length into summary vectors"


KIND = "AutoCompressors: UTF-8 text to a *.safetensors file of summary vectors"


def add_arguments(parser: argparse.ArgumentParser):
    add_codec_arguments(parser, "UTF-8 text to compress", "AutoCompressor")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser):
    """What `compress` takes for these models beside file, output, model and device."""
    parser.add_argument(
        "--segment-length",
        type=int,
        help="tokens per segment (default: as the model was trained with, else equal segments that fit it)",
    )
    add_budget_argument(parser)
    add_dtype_argument(parser)


def compress_with_progress(model, input_ids, segment_length: int | None, max_summary_length: int | None):
    """Returns `model.compress(input_ids)`, segment by segment under a progress bar."""
    from ..segments import resolve_segment_lengths

    length = input_ids.shape[1]
    if segment_length is None:
        segment_lengths = model.default_segment_lengths(length)
    else:
        segment_lengths = resolve_segment_lengths(segment_length, length)
    with progress_bar() as bar:
        return model.compress(
            input_ids,
            segment_lengths=segment_lengths,
            max_summary_length=max_summary_length,
            progress=partial(bar.track, total=len(segment_lengths), description="Compressing segments"),
        )


def print_summary(num_tokens: int, text_bytes: int, softprompt, path: Path, seconds: float):
    facts = {
        "file": str(path),
        "tokens": f"{num_tokens:,}",
        "summary vectors": f"{softprompt.shape[1]:,}",
        "compression ratio": f"{num_tokens / softprompt.shape[1]:.1f}x",
        "bytes of text / of file": f"{text_bytes:,} / {path.stat().st_size:,}",
        "seconds (tokens/s)": f"{seconds:.1f} ({num_tokens / seconds:,.0f})",
    }
    print_facts(facts)


def run(args: argparse.Namespace):
    from ..bases import load_autocompressor
    from ..softprompts import save_softprompt

    if str(args.output) == "-":
        raise ValueError("--output must be a file, summary vectors are not written to standard output.")
    check_output(args.output)
    if args.max_summary_length is not None and args.max_summary_length < 1:
        raise ValueError(f"--max-summary-length must be 1 or more, got {args.max_summary_length}.")
    text = read_text(args.file)
    model, tokenizer = load_with_tokenizer(args, load_autocompressor)
    input_ids = token_ids(tokenizer, text, model.device)
    start = time.perf_counter()
    softprompt = compress_with_progress(model, input_ids, args.segment_length, args.max_summary_length)
    seconds = time.perf_counter() - start
    save_softprompt(args.output, softprompt, model, num_tokens=input_ids.shape[1])
    print_summary(input_ids.shape[1], len(text.encode()), softprompt, args.output, seconds)

"""What compressing and decompressing without loss share: the model with its tokenizer, progress, what is printed."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from ...cli.common import load_model, load_tokenizer, print_facts
from ...families import FAMILIES, module_of


def codec_of(model_type: str) -> ModuleType:
    """What codes with a model: a program that its family has for its type, else that for any causal language model."""
    for family in FAMILIES:
        codecs = getattr(module_of(family, "commands"), "CODECS", {})
        if model_type in codecs:
            return module_of(family, codecs[model_type])

    from .. import codec

    return codec


def add_json_argument(parser: argparse.ArgumentParser):
    parser.add_argument("--json", action="store_true", help="print figures as one JSON object in place of a table")


def load_with_symbols(args: argparse.Namespace):
    """Returns the model of `--model`, and its tokenizer; `None` for a language model of bytes."""
    model = load_model(args)

    from ..vocabulary import BLOCK

    of_bytes = getattr(model.config.get_text_config(), "vocab_size", 0) < 2 * BLOCK
    return model, None if of_bytes else load_tokenizer(args.model)


@contextmanager
def coding_progress(description: str) -> Iterator:
    """A progress bar on standard error for the steps of coding, with bytes per second and the bits per byte so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(description), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def track(steps) -> Iterable[int]:
            start = time.perf_counter()
            for step in steps:
                yield step
                done = (step + 1) / len(steps)
                rate = done * steps.num_bytes / (time.perf_counter() - start)
                said = f"{rate:,.0f} bytes/s, {steps.bits_per_byte:.3f} bits per byte"
                bar.update(task, total=len(steps), completed=step + 1, description=said)

        yield track


def print_figures(figures: dict, table: dict[str, str], args: argparse.Namespace):
    """Figures as JSON for `--json`, else a table for people; on standard error where the file goes to standard
    output."""
    to_stdout = str(args.output) == "-"
    if args.json:
        print(json.dumps(figures), file=sys.stderr if to_stdout else sys.stdout)
    else:
        print_facts(table, stderr=to_stdout)

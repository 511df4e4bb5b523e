"""Runs targets of hostile input and prints what came out; `bash run/fuzz.sh --help` says how."""

import argparse
import csv
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers.utils import logging

from .cases import Case, Result, judged
from .checkpoints import checkpoints
from .codecs import codecs, strings
from .datasets import datasets
from .model_folders import configs, weights
from .pages import pages
from .softprompts import softprompts
from .writing import kills, writers


BUILD = Path(__file__).parents[2] / "build"


@dataclass(frozen=True)
class Target:
    """
    What is attacked.

    Args:
        cases (`Callable`): Of an empty folder, a number and a seed, so many cases and a good one of each kind.
        count (`int`): How many there are by default.
    """

    cases: Callable[[Path, int, int], Iterator[Case]]
    count: int


TARGETS = {
    "codecs": Target(codecs, 5000),
    "softprompts": Target(softprompts, 2000),
    "configs": Target(configs, 500),
    "weights": Target(weights, 500),
    "checkpoints": Target(checkpoints, 100),
    "datasets": Target(datasets, 500),
    "pages": Target(pages, 1000),
    "strings": Target(strings, 2000),
    "kills": Target(kills, 150),
    "writers": Target(writers, 60),
}


def run_target(name: str, count: int, seed: int, kept: Path) -> list[Result]:
    """The results of a target, with a bar that says how long it takes; failures are written as they come."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cases = TARGETS[name].cases(Path(folder), count, seed)
        with tqdm(desc=name, total=count, unit=" cases") as bar:
            for result in judged(cases, kept / name):
                results.append(result)
                bar.update(not result.good)
                if result.problem:
                    bar.write(f"{name}, {result.kind}: {result.problem:.300} {result.kept}")
    return results


def summary(name: str, results: list[Result]) -> Iterator[list[str]]:
    """A row of the table for every kind of a target."""
    for kind in dict.fromkeys(result.kind for result in results):
        own = [result for result in results if result.kind == kind and not result.good]
        counts = Counter(result.outcome for result in own)
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())
        slowest = max((result.seconds for result in own), default=0.0)
        most = max((result.megabytes for result in own), default=0.0)
        failures = sum(bool(result.problem) for result in own)
        yield [name, kind, f"{len(own):,}", outcomes, f"{slowest:.2f}", f"{most:.1f}", str(failures)]


def print_table(results: dict[str, list[Result]]):
    table = Table(title="Hostile input")
    for column in ("target", "kind", "cases", "outcomes", "slowest, s", "most, MB", "failures"):
        table.add_column(column, justify="left" if column in ("target", "kind", "outcomes") else "right")
    for name, found in results.items():
        for row in summary(name, found):
            table.add_row(*row)
    Console(width=max(Console().width, 130)).print(table)


def write_csv(path: Path, results: dict[str, list[Result]]):
    rows = [{"target": name} | asdict(result) for name, found in results.items() for result in found]
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz.sh", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} (default: all)")
    parser.add_argument("--count", type=int, help="cases of each target (default: its own number)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    args = parser.parse_args(argv)
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"TARGET must be one of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}.")
    # A process that others are made of must have no threads.
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0
    logging.disable_progress_bar()
    shutil.rmtree(BUILD / "fuzz", ignore_errors=True)
    BUILD.mkdir(exist_ok=True)
    names = args.targets or list(TARGETS)
    results = {name: run_target(name, args.count or TARGETS[name].count, args.seed, BUILD / "fuzz") for name in names}
    print_table(results)
    write_csv(BUILD / "fuzz.csv", results)
    return int(any(result.problem for found in results.values() for result in found))


if __name__ == "__main__":
    sys.exit(main())

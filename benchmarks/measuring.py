"""What the benchmarks share: timing in turn, and rows as a table and as CSV."""

import csv
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


PRODUCT = 1024  # rows and columns of the product that the rate is measured with


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def products_per_second(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second in a large product, on the threads that are set."""
    left, right = (torch.randn(PRODUCT, PRODUCT, dtype=dtype) for _ in range(2))
    return 2 * PRODUCT**3 / min(cpu_seconds(lambda: left @ right) for _ in range(10))


def in_turn(functions: dict[str, Callable[[], object]], repeats: int, timer: Callable = seconds) -> dict[str, float]:
    """The median seconds of every function, all called in turn: what else the machine does slows all of them."""
    times = [{name: timer(function) for name, function in functions.items()} for _ in range(repeats + 1)][1:]
    return {name: sorted(run[name] for run in times)[repeats // 2] for name in functions}


def peak_bytes(function: Callable[[], object]) -> int:
    """Bytes of tensors on the CPU that a call holds at its peak, beyond those that were there before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def cell(value: float | str | None) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def print_table(title: str, rows: list[dict], width: int = 160):
    """One line for each row, numbers to the right."""
    table = Table(title=title)
    for column in rows[0]:
        texts = all(isinstance(row[column], str) for row in rows)
        table.add_column(column, justify="left" if texts else "right")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    Console(width=width).print(table)


def write_rows(rows: list[dict], path: Path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

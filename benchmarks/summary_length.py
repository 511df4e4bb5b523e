"""How many summary vectors are worth their place: perplexity of held-out text against vectors per segment.

    python benchmarks/summary_length.py --jobs 2      # about an hour of CPU time; finished runs are not run again

Trains on the bundled text, all from one small language model and for equal steps:
- `length`: variable-length summaries with growing --compression_lambda, each read with several
  `compress_stop_threshold`; fixed lengths; RMT (the last summary only);
- `budget`: one model with nested summaries, asked for k vectors, against models trained for exactly k.

Needs matplotlib. Writes the figures as `summary_length.csv` and the curves as `summary_length.png` to --output_dir.
"""

import argparse
import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.commands.perplexity import cut_sequences
from auto_compressor.autocompressor.context import ContextResult, compare_contexts
from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


ROOT = Path(__file__).parents[1]
COMMON = """--do_train --use_cpu --save_strategy no --lr_scheduler_type cosine --weight_decay 0.1 --adam_beta2 0.95
    --per_device_train_batch_size 4 --warmup_steps 50 --logging_steps 50 --block_size 256 --report_to none""".split()
LAMBDAS = (0.0, 0.01, 0.03, 0.1, 0.3)
LENGTHS = (1, 2, 4, 8)
BUDGETS = (1, 5, 10, 25, 50)
SEGMENTS = {"length": [64, 64, 64, 64], "budget": [128, 128]}
THRESHOLDS = (0.15, 0.25, 0.5)


@dataclass
class Run:
    """A model to train: its curve, its name, and the flags of train.py that make it."""

    experiment: str
    curve: str
    name: str
    flags: list[str]

    def points(self) -> list[dict[str, float]]:
        """How it is read: with thresholds of stopping, with budgets, or as it is."""
        if self.curve == "variable":
            return [{"threshold": threshold} for threshold in THRESHOLDS]
        return [{"budget": budget} for budget in BUDGETS] if self.curve == "one model" else [{}]


def all_runs() -> list[Run]:
    runs = [
        Run(
            "length",
            "variable",
            f"lambda {value:g}",
            ["--compression_max_len", "8", "--compression_lambda", str(value)],
        )
        for value in LAMBDAS
    ]
    for length in LENGTHS:
        fixed = ["--summary_length", str(length)]
        runs.append(Run("length", "fixed", f"{length} vectors", fixed))
        runs.append(Run("length", "RMT", f"{length} vectors", [*fixed, "--accumulate_summary", "false"]))
    runs.append(Run("budget", "one model", "nested", ["--summary_length", str(BUDGETS[-1]), "--nested_summaries"]))
    for budget in BUDGETS:
        runs.append(Run("budget", "a model for each", f"{budget} vectors", ["--summary_length", str(budget)]))
    return runs


def run_train_py(folder: Path, flags: list[str]):
    """Runs train.py on one thread with its output in `folder`.log, unless the model is there already."""
    if (folder / "train_results.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "train.py", *COMMON, *flags, "--output_dir", str(folder.resolve())]
    with Path(f"{folder}.log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(f"train.py stopped with {done.returncode}, see {log.name}.")


def folder_of(run: Run, output_dir: Path) -> Path:
    return output_dir / f"{run.experiment}_{run.curve}_{run.name}".replace(" ", "_")


def train_all(runs: list[Run], output_dir: Path, steps: int, jobs: int):
    """Trains the language model, then full attention for the comparison and every run, `jobs` at a time."""
    base, progress = output_dir / "base", Progress(console=Console(stderr=True))
    with progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("Training", total=len(runs) + 2)
        run_train_py(
            base, ["--config_name", "tiny", "--full_attention", "--max_steps", "800", "--learning_rate", "3e-3"]
        )
        progress.advance(task)
        second = ["--model_name_or_path", str(base.resolve()), "--max_steps", str(steps), "--learning_rate", "2e-3"]
        jobs_flags = {output_dir / "full_attention": [*second, "--full_attention"]}
        for run in runs:
            segments = [str(length) for length in SEGMENTS[run.experiment]]
            jobs_flags[folder_of(run, output_dir)] = [*second, *run.flags, "--segment_lengths", *segments]
        futures = [pool.submit(run_train_py, *job) for job in jobs_flags.items()]
        for future in as_completed(futures):
            progress.advance(task)
            future.result()


def held_out(folder: Path, length: int) -> list[torch.LongTensor]:
    """The held-out text in sequences of `length` tokens, in batches."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids
    return cut_sequences(ids, length, None, batch_size=16)


def row_of(run: Run, point: dict[str, float], results: list[ContextResult]) -> dict:
    """One line of the table: vectors per compressed segment, and perplexity after each form of the context."""
    num_compressed = 1 if run.curve == "RMT" else len(SEGMENTS[run.experiment]) - 1
    none, summary, other, full = (result.perplexity for result in results)
    threshold = f", stop above {point['threshold']:g}" if "threshold" in point else ""
    return {
        "experiment": run.experiment,
        "curve": run.curve + threshold,
        "setting": f"asked for {point['budget']}" if "budget" in point else run.name,
        "vectors": round(results[1].positions / num_compressed, 2),
        "no context": round(none, 2),
        "summary vectors": round(summary, 2),
        "of another text": round(other, 2),
        "full context": round(full, 2),
    }


def evaluate_all(runs: list[Run], output_dir: Path) -> list[dict]:
    full: PreTrainedModel = load_autocompressor(str(output_dir / "full_attention")).eval()
    rows, progress = [], Progress(console=Console(stderr=True))
    with progress:
        for run in progress.track(runs, description="Evaluating"):
            folder = folder_of(run, output_dir)
            model, segments = load_autocompressor(str(folder)).eval(), SEGMENTS[run.experiment]
            batches = held_out(folder, sum(segments))
            for point in run.points():
                model.config.compress_stop_threshold = point.get("threshold")
                results = compare_contexts(model, batches, segments, full, point.get("budget"))
                rows.append(row_of(run, point, results))
    return rows


def plot(rows: list[dict], path: Path):
    """One panel per experiment: perplexity after summary vectors against their number."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, experiment in zip(axes, SEGMENTS, strict=True):
        chosen = [row for row in rows if row["experiment"] == experiment]
        for curve in dict.fromkeys(row["curve"] for row in chosen):
            points = sorted((row["vectors"], row["summary vectors"]) for row in chosen if row["curve"] == curve)
            style = "o-" if curve.startswith(("variable", "one")) else "s--"
            axis.plot(*zip(*points, strict=True), style, label=curve)
        without = sum(row["no context"] for row in chosen) / len(chosen)
        axis.axhline(without, color="gray", linestyle=":", label="no context")
        axis.axhline(chosen[0]["full context"], color="gray", linewidth=1, label="full context")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(f"summary vectors per segment of {SEGMENTS[experiment][0]} tokens")
        axis.set_ylabel("perplexity of the last segment")
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def report(rows: list[dict], output_dir: Path):
    """Prints a table per experiment, writes all rows as CSV, and plots them."""
    for experiment in SEGMENTS:
        chosen = [row for row in rows if row["experiment"] == experiment]
        table = Table(title=f"{experiment}: held-out perplexity of the last segment")
        for column, value in list(chosen[0].items())[1:]:
            table.add_column(column, justify="left" if isinstance(value, str) else "right", no_wrap=True)
        for row in chosen:
            table.add_row(*(str(value) for value in list(row.values())[1:]))
        Console(width=119).print(table)
    with (output_dir / "summary_length.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, output_dir / "summary_length.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/summary_length"))
    parser.add_argument("--steps", type=int, default=500, help="steps of every model after the language model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at a time, one thread each")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    runs = all_runs()
    train_all(runs, args.output_dir, args.steps, args.jobs)
    report(evaluate_all(runs, args.output_dir), args.output_dir)


if __name__ == "__main__":
    main()

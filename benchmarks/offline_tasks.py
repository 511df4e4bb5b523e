"""What do models know of a context that they hold compressed? The offline tasks, for three models and four forms.

    python benchmarks/offline_tasks.py --cases 60                    # one CPU thread, an hour and a half

All read the last 32 tokens of a context as they are, and what stands before them as the name of the row says: summary
vectors of `smollm2-ac`, a smaller cache of SmolLM2, as many of the last tokens as these take positions, nothing, or
everything (which is SmolLM2 by transformers). One answer in four is right by chance; intervals are those of 95 % for
the mean of all cases. Writes `offline_tasks.csv` to --output_dir; rows that stand in it are not measured again.
"""

import argparse
import csv
import logging
import math
import tempfile
from pathlib import Path

import lm_eval
import torch
from lm_eval.tasks import TaskManager
from rich.progress import track

from auto_compressor.evaluation import context_models  # noqa: F401 (registers its models)
from auto_compressor.evaluation.offline_tasks import TASKS, write_tasks
from auto_compressor.files.bases import resolve_base
from measuring import print_table, write_rows


COMPRESSOR = {"pretrained": "smollm2-ac", "dtype": "float32"}
CACHE = {"pretrained": "smollm2", "dtype": "float32"}
# name of the row -> model of lm-eval and its arguments
ROWS = {
    "SmolLM2, full context": ("hf", CACHE),
    "SmolLM2, SnapKV, 8x": ("merging_cache", CACHE | {"ratio": 8, "policy": "snapkv"}),
    "SmolLM2, last tokens, 8x": ("merging_cache", CACHE | {"ratio": 8, "form": "truncated"}),
    "SmolLM2, no context": ("merging_cache", CACHE | {"form": "none"}),
    "smollm2-ac, full context": ("hf", COMPRESSOR),
    "smollm2-ac, summary vectors, 4x": ("autocompressor", COMPRESSOR | {"ratio": 4}),
    "smollm2-ac, summary vectors, 8x": ("autocompressor", COMPRESSOR | {"ratio": 8}),
    "smollm2-ac, last tokens, 8x": ("autocompressor", COMPRESSOR | {"ratio": 8, "form": "truncated"}),
    "smollm2-ac, no context": ("autocompressor", COMPRESSOR | {"form": "none"}),
}


def accuracies(model: str, arguments: dict, tasks: Path) -> dict[str, float]:
    """Share of right answers of every task."""
    names = [f"offline_{name}" for name in TASKS]
    if model == "hf":
        arguments = arguments | {"pretrained": str(resolve_base(arguments["pretrained"]))}
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=names,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    return {name: found["results"][f"offline_{name}"]["acc,none"] for name in TASKS}


def row_of(name: str, tasks: Path, args: argparse.Namespace) -> dict:
    """Percentages of right answers, and their mean with its interval."""
    found = accuracies(*ROWS[name], tasks)
    mean = sum(found.values()) / len(found)
    # Tasks are strata of equal size, whose variances add up.
    error = math.sqrt(sum(share * (1 - share) / (args.cases - 1) for share in found.values())) / len(found)
    percentages = {task: 100 * share for task, share in found.items()}
    return {"model": name, **percentages, "mean": 100 * mean, "+-": 196 * error}


def shown(row: dict) -> dict:
    """A row, which may have been read as text, with rounded figures."""
    return {key: value if key == "model" else f"{float(value):.1f}" for key, value in row.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--cases", type=int, default=60, help="cases of each task")
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmarks"))
    args = parser.parse_args()
    logging.disable(logging.INFO)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table = args.output_dir / "offline_tasks.csv"
    known = {row["model"]: row for row in csv.DictReader(table.open())} if table.exists() else {}
    with tempfile.TemporaryDirectory() as tasks, torch.no_grad():
        write_tasks(Path(tasks), args.cases, seed=0)
        for name in track(args.only, "Rows"):
            known[name] = known.get(name) or row_of(name, Path(tasks), args)
            write_rows(list(known.values()), table)
    print_table(
        f"Right answers in percent, {args.cases} cases of each task", [shown(known[name]) for name in args.only]
    )


if __name__ == "__main__":
    main()

"""Do summary vectors give facts back? Exact recall with each kind of compression, after equal steps of training.

    python benchmarks/recall.py                                      # one CPU thread: a small Llama from scratch
    python benchmarks/recall.py --only "full context" fixed --steps 200

A small Llama learns both tasks with full attention: the base. Every row then starts from it
and is trained for the same steps on the same examples, through `train.py`. Two controls stand beside every figure: no
context (guessing), and the context of another example. Writes `recall.csv` and `recall.json` to --output_dir.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig

from auto_compressor.bases import load_autocompressor
from auto_compressor.bundled import BUNDLED_TOKENIZER
from auto_compressor.evaluation.recall import RecallTask, measure_recall, recall_dataset


ROOT = Path(__file__).parents[1]
NUMBERS = {
    "passkey": {"digits": 2},
    "key_value": {"digits": 1, "pairs": 4, "questions": 4, "keys": 16},
}
# Small matrices need larger weights than 0.02 to begin with, and binding a value to its key takes many heads.
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 336,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "tie_word_embeddings": True,
}
TRAINING = (
    "--do_train --use_cpu --save_strategy no --warmup_steps 50 --weight_decay 0.01"
    " --adam_beta2 0.95 --report_to none --logging_steps 100 --disable_tqdm true"
).split()

FIXED, VARIABLE = "--summary_length 4", "--compression_max_len 4 --compression_lambda 0.001"
RECONSTRUCTION, DISTILLATION = "--reconstruction_weight 1", "--distillation_weight 1 --distillation_model {base}"
# name of the row -> flags of train.py; {base} is the folder of the base
CONFIGURATIONS = {
    "full context": "--full_attention",
    "fixed": FIXED,
    "fixed + reconstruction": f"{FIXED} {RECONSTRUCTION}",
    "fixed + distillation": f"{FIXED} {DISTILLATION}",
    "variable": VARIABLE,
    "variable + reconstruction": f"{VARIABLE} {RECONSTRUCTION}",
    "variable + reconstruction + distillation": f"{VARIABLE} {RECONSTRUCTION} {DISTILLATION}",
}


PAIRS_OF_COLUMNS = [("exact", "tokens"), ("no context", "other context")]


@dataclass(frozen=True)
class Stage:
    """One training: tokens of every segment, the last one with the question; tasks; examples per step."""

    segment_lengths: list[int]
    tasks: list[str]
    batch_size: int
    steps: int
    learning_rate: float = 1e-3


BASE_STAGES = [
    Stage([12, 8], ["key_value"], 32, 1000),
    Stage([16, 16], list(NUMBERS), 32, 600),
    Stage([16, 16, 16, 16, 16], list(NUMBERS), 32, 500),
]
STAGE = Stage([16, 16, 16, 16, 16], list(NUMBERS), 32, 500)


def make_datasets(output_dir: Path, stage: Stage, split: str, rows_per_task: int, seed: int) -> list[str]:
    """Saves examples of the tasks of a stage and returns their folders."""
    tokenizer, folders = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER), []
    for name in stage.tasks:
        rows = recall_dataset(task_of(name, stage), tokenizer, split, rows_per_task, seed=seed)
        folders.append(str(output_dir / f"data_{split}_{sum(stage.segment_lengths)}" / name))
        rows.save_to_disk(folders[-1])
    return folders


def task_of(name: str, stage: Stage) -> RecallTask:
    return RecallTask(name, sum(stage.segment_lengths), stage.segment_lengths[-1], **NUMBERS[name])


def write_new_model(folder: Path) -> str:
    """Writes config and tokenizer of the model that is trained from scratch."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    LlamaConfig(vocab_size=len(tokenizer), **MODEL, **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(stage: Stage, folder: Path, flags: list[str], seed: int) -> float:
    """Runs `train.py` on new examples; its output goes to `FOLDER.log`. Returns the seconds it took."""
    start = time.perf_counter()
    rows_per_task = stage.steps * stage.batch_size // len(stage.tasks)
    train_sets = make_datasets(folder.parent, stage, "train", rows_per_task, seed)
    validation_sets = make_datasets(folder.parent, stage, "validation", 64, seed)
    arguments = ["--output_dir", folder, "--max_steps", stage.steps, "--learning_rate", stage.learning_rate]
    arguments += ["--per_device_train_batch_size", stage.batch_size, "--seed", seed, *TRAINING, *flags]
    arguments += ["--segment_lengths", *stage.segment_lengths, "--preprocessed_train_datasets", *train_sets]
    arguments += ["--preprocessed_validation_datasets", *validation_sets]
    log = folder.with_name(f"{folder.name}.log")
    with log.open("w") as output:
        command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output).returncode
    if code != 0:
        raise ValueError(f"train.py failed with {flags}: {log.read_text().splitlines()[-1:]} ({log})")
    return time.perf_counter() - start


def train_base(output_dir: Path, stages: list[Stage], seed: int) -> str:
    """Teaches a new model both tasks with full attention, stage by stage; returns the folder of the last one."""
    start = ["--config_name", write_new_model(output_dir / "new_model")]
    for index, stage in enumerate(stages):
        folder = output_dir / f"base_{index}"
        schedule = ["--lr_scheduler_type", "constant_with_warmup"]
        seconds = train(stage, folder, ["--full_attention", *schedule, *start], seed)
        print(f"base, stage {index}: {seconds:.0f} s", flush=True)
        start = ["--model_name_or_path", str(folder)]
    return str(folder)


def measure(folder: Path, stage: Stage, num_rows: int, seed: int) -> dict[str, float]:
    """Recall of every task, its controls, and the columns the context took up; on examples that no training had."""
    model, tokenizer = load_autocompressor(str(folder)).eval(), AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    full_context = model.config.summary_length == 0 and not model.config.variable_length
    figures, positions = {}, []
    for name in stage.tasks:
        rows = recall_dataset(task_of(name, stage), tokenizer, "validation", num_rows, seed=seed)
        none, own, other = measure_recall(model, rows, stage.segment_lengths, full_context)
        figures |= {f"{name} exact": own.exact_match, f"{name} tokens": own.token_accuracy}
        figures |= {f"{name} no context": none.exact_match, f"{name} other context": other.exact_match}
        positions.append(own.mean_positions)
    mean_positions = sum(positions) / len(positions)
    context_length = sum(stage.segment_lengths[:-1])
    return figures | {"positions": mean_positions, "ratio": context_length / max(mean_positions, 1)}


def print_table(rows: list[dict], title: str):
    """Prints percentages: exact match and token accuracy of every task, and the exact match of its controls."""
    table = Table("model", title=f"{title}, %")
    for task in NUMBERS:
        table.add_column(f"{task}\nexact/tokens", justify="right")
        table.add_column("controls\nno/other", justify="right")
    for column in ("vectors", "ratio", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        pairs = [(f"{task} {a}", f"{task} {b}") for task in NUMBERS for a, b in PAIRS_OF_COLUMNS]
        cells = [f"{100 * row[a]:.1f}/{100 * row[b]:.1f}" for a, b in pairs]
        table.add_row(row["model"], *cells, f"{row['positions']:.1f}", f"{row['ratio']:.1f}x", f"{row['seconds']:.0f}")
    Console(width=119).print(table)


def write_results(rows: list[dict], output_dir: Path, setting: dict):
    """Writes the rows as CSV, and with the setting as JSON."""
    (output_dir / "recall.json").write_text(json.dumps({"setting": setting, "rows": rows}, indent=2))
    with (output_dir / "recall.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--steps", type=int, default=STAGE.steps, help="of every row")
    parser.add_argument("--base", help="folder of a base that this script trained (default: trains one)")
    parser.add_argument("--rows", type=int, default=512, help="examples of each task that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/recall"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    disable_progress_bars()
    output_dir = args.output_dir.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    base = args.base or train_base(output_dir, BASE_STAGES, args.seed + 1)
    stage, rows = replace(STAGE, steps=args.steps), []
    for name in args.only:
        folder = output_dir / name.replace(" + ", "_").replace(" ", "_")
        flags = CONFIGURATIONS[name].format(base=base).split()
        schedule = ["--lr_scheduler_type", "cosine"]
        seconds = train(stage, folder, ["--model_name_or_path", base, *schedule, *flags], args.seed)
        figures = measure(folder, stage, args.rows, args.seed + 1)
        rows.append({"model": name, **figures, "seconds": seconds})
        write_results(rows, output_dir, {"stage": asdict(stage), "base": base, "numbers": NUMBERS, "seed": args.seed})
    print_table(rows, f"Recall after {stage.steps} steps")


if __name__ == "__main__":
    main()

"""Do summary vectors give facts back? Exact recall with each kind of compression, after equal steps of training.

    python benchmarks/recall.py --jobs 2                             # two CPU threads, half an hour
    python benchmarks/recall.py --only "full context" fixed

Every row is a small Llama that learns from nothing, in the same two stages and steps, through `train.py`: first facts
alone, then facts in filler. Two controls stand beside every figure: no context (guessing), and the context of another
example. Writes `recall.csv` and `recall.json` to --output_dir; rows that are trained already are not trained again.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import disable_progress_bars
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig

from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.evaluation.recall import RecallTask, measure_recall, recall_dataset
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


ROOT = Path(__file__).parents[1]
NUMBERS = {
    "passkey": {"digits": 2},
    "key_value": {"digits": 1, "pairs": 2, "questions": 2, "keys": 16},
}
# As in Mohtashami & Jaggi, "Landmark Attention", NeurIPS 2023, section 4.2: what stands around the facts is known.
FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again." * 50
# Small matrices need larger weights than 0.02 to begin with; many heads learn to bind values to keys.
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
    "--do_train --use_cpu --save_strategy no --learning_rate 1e-3 --warmup_steps 50 --weight_decay 0.01"
    " --adam_beta2 0.95 --report_to none --logging_steps 100 --disable_tqdm true"
).split()

FIXED, VARIABLE = "--summary_length 4", "--compression_max_len 4 --compression_lambda 0.001"
RECONSTRUCTION, DISTILLATION = "--reconstruction_weight 1", "--distillation_weight 1 --distillation_model {teacher}"
# name of the row -> flags of train.py; {teacher} is the folder of the full-context row
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
    """One training: tokens of every segment, the last one with the question; tasks; steps; schedule of the rate."""

    segment_lengths: list[int]
    tasks: list[str]
    steps: int
    lr_scheduler_type: str


STAGES = [
    Stage([6, 4], ["key_value"], 600, "constant_with_warmup"),
    Stage([16, 16, 16, 16], list(NUMBERS), 800, "cosine"),
]
BATCH_SIZE = 32


def make_datasets(folder: Path, stage: Stage, split: str, rows_per_task: int, seed: int):
    """Saves examples of every task of a stage as `FOLDER/TASK`."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    for name in stage.tasks:
        rows = recall_dataset(task_of(name, stage), tokenizer, split, rows_per_task, seed=seed, text=FILLER)
        rows.save_to_disk(folder / name)


def task_of(name: str, stage: Stage) -> RecallTask:
    return RecallTask(name, sum(stage.segment_lengths), stage.segment_lengths[-1], **NUMBERS[name])


def write_new_model(folder: Path):
    """Writes config and tokenizer of the model that is trained from scratch."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    LlamaConfig(vocab_size=len(tokenizer), **MODEL, **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_stage(stage: Stage, folder: Path, flags: list[str], data_dir: Path, seed: int):
    """Runs `train.py` on the examples of a stage; its output goes to `FOLDER.log`."""
    arguments = ["--output_dir", folder, "--max_steps", stage.steps, "--lr_scheduler_type", stage.lr_scheduler_type]
    arguments += ["--per_device_train_batch_size", BATCH_SIZE, "--seed", seed, *TRAINING, *flags]
    arguments += ["--segment_lengths", *stage.segment_lengths]
    for split in ("train", "validation"):
        arguments += [f"--preprocessed_{split}_datasets", *(data_dir / split / name for name in stage.tasks)]
    log = folder.with_name(f"{folder.name}.log")
    with log.open("w") as output:
        command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output).returncode
    if code != 0:
        raise ValueError(f"train.py failed with {flags}: {log.read_text().splitlines()[-1:]} ({log})")


def folder_of(name: str, output_dir: Path) -> Path:
    """Where the model of a row is after the last stage."""
    return output_dir / name.replace(" + ", "_").replace(" ", "_")


def train_row(name: str, output_dir: Path, seed: int):
    """Trains the model of a row through all stages, unless it is there."""
    folder, teacher = folder_of(name, output_dir), folder_of("full context", output_dir)
    if (folder / "train_results.json").exists():
        return
    start = ["--config_name", output_dir / "new_model"]
    for index, stage in enumerate(STAGES):
        into = folder if stage is STAGES[-1] else output_dir / f"{folder.name}_stage_{index}"
        flags = [*start, *CONFIGURATIONS[name].format(teacher=teacher).split()]
        train_stage(stage, into, flags, output_dir / f"data_{index}", seed)
        start = ["--model_name_or_path", into]


def measure(folder: Path, stage: Stage, num_rows: int, seed: int) -> dict[str, float]:
    """Recall of every task, its controls, and the columns the context took up; on examples that no training had."""
    model, tokenizer = load_autocompressor(str(folder)).eval(), AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    full_context = model.config.max_vectors == 0
    figures, positions = {}, []
    for name in stage.tasks:
        rows = recall_dataset(task_of(name, stage), tokenizer, "validation", num_rows, seed=seed, text=FILLER)
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
    parser.add_argument("--jobs", type=int, default=1, help="models trained at a time, one thread each")
    parser.add_argument("--rows", type=int, default=512, help="examples of each task that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/recall"))
    return parser.parse_args()


def train_all(names: list[str], output_dir: Path, jobs: int, seed: int):
    """Makes the data and trains every row, the teacher of the others first."""
    write_new_model(output_dir / "new_model")
    for index, stage in enumerate(STAGES):
        for split, rows_per_task in (("train", stage.steps * BATCH_SIZE // len(stage.tasks)), ("validation", 64)):
            make_datasets(output_dir / f"data_{index}" / split, stage, split, rows_per_task, seed)
    progress = Progress(console=Console(stderr=True))
    with progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("Training", total=len(names) + 1)
        train_row("full context", output_dir, seed)
        progress.advance(task)
        for future in as_completed([pool.submit(train_row, name, output_dir, seed) for name in names]):
            progress.advance(task)
            future.result()


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    disable_progress_bars()
    output_dir = args.output_dir.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    train_all(args.only, output_dir, args.jobs, args.seed)
    rows = []
    for name in args.only:
        folder = folder_of(name, output_dir)
        seconds = json.loads((folder / "train_results.json").read_text())["train_runtime"]
        rows.append({"model": name, **measure(folder, STAGES[-1], args.rows, args.seed + 1), "seconds": seconds})
    write_results(rows, output_dir, {"stages": [asdict(stage) for stage in STAGES], "numbers": NUMBERS})
    print_table(rows, "Recall")


if __name__ == "__main__":
    main()

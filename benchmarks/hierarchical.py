"""Hierarchical byte autoencoders on the bundled text: what comes back from the codes, for how many bits, and how fast.

    python benchmarks/hierarchical.py                        # about 15 minutes on one thread
    python benchmarks/hierarchical.py --curve checkpoints/two_levels    # the curve of a run of train_hierarchical.sh

Trains one model for each quantiser with run/train_hierarchical.sh (512-byte windows, batch 4, 300 steps, one thread)
and measures all of them on the held-out text; finished runs are not run again. Bytes/s are set beside those of the
published implementation, measured by its own script on one thread of another machine (2,950 in training, 93 in
decoding), and, in the same run, beside decoding one segment after the other.

Needs matplotlib. Writes `hierarchical.csv` and `hierarchical.png` to --output_dir.
"""

import argparse
import csv
import json
import lzma
import os
import subprocess
import time
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging

from auto_compressor import HierarchicalAutoencoder
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.hierarchical_autoencoder.metrics import measure_reconstruction


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


ROOT = Path(__file__).parents[1]
RUNS = {
    "EMA VQ, 1024 codes": ["--quantizer", "ema_vq", "--codebook_size", "1024"],
    "EMA VQ, 4096 codes": ["--quantizer", "ema_vq", "--codebook_size", "4096"],
    "residual VQ, 2 x 1024": ["--quantizer", "residual_vq", "--num_quantizers", "2"],
    "FSQ, 8 x 5 x 5 x 5": ["--quantizer", "fsq", "--fsq_levels", "8", "5", "5", "5"],
}
PUBLISHED = {"train": 2950, "decode": 93}  # bytes/s on one thread
COLUMNS = ("reconstruction_accuracy", "shuffled_accuracy", "teacher_forced_accuracy", "length_accuracy")
COLUMNS += ("level_0_codes_used", "level_0_codebook_perplexity", "bytes_per_code")
COLUMNS += ("bits_per_byte_raw", "bits_per_byte_codes", "bits_per_byte_residual", "bits_per_byte")


def train(name: str, output_dir: Path, steps: int) -> Path:
    """Runs run/train_hierarchical.sh on one thread, unless the model is there already; returns its folder."""
    folder = (output_dir / name.replace(" ", "_").replace(",", "")).resolve()
    if not (folder / "eval_results.json").exists():
        settings = {"OUT": str(folder), "STEPS": str(steps), "SAVE": str(10 * steps)}
        environment = os.environ | settings | {"NUM_GPUS": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        folder.mkdir(parents=True, exist_ok=True)
        # The evaluation at the end of training would count as training time.
        command = ["bash", "run/train_hierarchical.sh", *RUNS[name], "--eval_strategy", "no"]
        with (folder / "benchmark.log").open("w") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise RuntimeError(f"train_hierarchical.sh stopped with {done.returncode}, see {log.name}.")
    return folder


def held_out(model: HierarchicalAutoencoder, batch_size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The held-out text in batches of blocks."""
    return list(
        zip(*(part.split(batch_size) for part in model.blocks(BUNDLED_VALIDATION_TEXT.read_bytes())), strict=True)
    )


def bytes_per_second(function, num_bytes: int, repeats: int = 5) -> float:
    """The median over `repeats`."""
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        rates.append(num_bytes / (time.perf_counter() - start))
    return sorted(rates)[repeats // 2]


@torch.no_grad()
def decoding_rates(model: HierarchicalAutoencoder) -> dict[str, float]:
    """Bytes/s of four blocks: encoding, decoding all segments at once, and one segment after the other."""
    input_ids, mask = (part[:4] for part in model.blocks(BUNDLED_VALIDATION_TEXT.read_bytes()))
    codes, num_bytes = model.encode(input_ids, mask).codes, int(mask.sum())
    vectors = model.compressors[0].quantizer.codes_to_stages(codes.transpose(1, 2).clamp(min=0))[..., -1, :]
    expander, present = model.expanders[0], codes[:, 0] >= 0
    memory = expander.read_codes(vectors, present)[present]
    return {
        "encode": bytes_per_second(lambda: model.encode(input_ids, mask), num_bytes),
        "decode": bytes_per_second(lambda: model.decode(codes), num_bytes),
        "decode_in_turn": bytes_per_second(
            lambda: [expander.generate(segment[None]) for segment in memory], num_bytes, repeats=1
        ),
    }


def measure(name: str, folder: Path) -> dict[str, float]:
    model = HierarchicalAutoencoder.from_pretrained(folder).eval()
    figures = measure_reconstruction(model, held_out(model))
    training = json.loads((folder / "train_results.json").read_text())
    rates = {"train": training["train_samples_per_second"] * model.config.block_size} | decoding_rates(model)
    figures |= {f"{what}_bytes_per_second": rate for what, rate in rates.items()}
    figures |= {f"{what}_to_published": rates[what] / rate for what, rate in PUBLISHED.items()}
    figures["decode_to_in_turn"] = rates["decode"] / rates["decode_in_turn"]
    return {"model": name, "parameters": model.num_parameters()} | figures


def print_tables(rows: list[dict]):
    speeds = [key for key in rows[0] if key.endswith(("_per_second", "_to_published", "_to_in_turn"))]
    for title, columns in (("From the codes alone", COLUMNS), ("Bytes per second", speeds)):
        table = Table("", *(row["model"] for row in rows), title=title)
        for column in columns:
            table.add_row(column, *(f"{row[column]:,.4g}" for row in rows))
        Console(width=120).print(table)


def xz_bits_per_byte() -> float:
    """What xz needs for the held-out text when it has seen the training text."""
    before, text = BUNDLED_TRAIN_TEXT.read_bytes(), BUNDLED_VALIDATION_TEXT.read_bytes()
    return 8 * (len(lzma.compress(before + text, preset=9)) - len(lzma.compress(before, preset=9))) / len(text)


def plot_rates(rows: list[dict], path: Path):
    """Accuracy of the reconstruction against the bits of the codes as they are stored."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for row in rows:
        point = axes.scatter(row["bits_per_byte_raw"], row["reconstruction_accuracy"], label=row["model"])
        colour = point.get_facecolor()[0]
        axes.scatter(row["bits_per_byte_raw"], row["shuffled_accuracy"], marker="x", color=colour)
    axes.axvline(xz_bits_per_byte(), color="grey", linestyle=":", label="xz after the training text, lossless")
    axes.set(xlabel="bits per byte of the stored codes", ylabel="bytes that come back", ylim=(0, 1))
    axes.set_title("Free-running reconstruction of held-out text (x: codes shuffled)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def plot_curve(folder: Path, path: Path):
    """Accuracy over the steps of a training run, from the log of its Trainer."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in ("reconstruction_accuracy", "teacher_forced_accuracy", "length_accuracy", "shuffled_accuracy"):
        key = f"eval_validation_{name}"
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
    axes.set(xlabel="steps", ylabel="share of held-out bytes", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--models", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmark_hierarchical"))
    parser.add_argument("--curve", type=Path, help="only plot the curve of this training run")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.curve is not None:
        plot_curve(args.curve, args.output_dir / "hierarchical_curve.png")
        return
    rows = [
        measure(name, train(name, args.output_dir, args.steps))
        for name in track(args.models, "Training and measuring", console=Console(stderr=True))
    ]
    print_tables(rows)
    with (args.output_dir / "hierarchical.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot_rates(rows, args.output_dir / "hierarchical.png")


if __name__ == "__main__":
    main()

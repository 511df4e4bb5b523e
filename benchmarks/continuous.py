"""Continuous text autoencoders: what comes back of held-out text over ratios and widths of latents, and speed.

    python benchmarks/continuous.py                     # 800 steps of every model, half an hour on one thread
    python benchmarks/continuous.py --only quality --steps 3000 --models "ratio 4, latent 64" "ratio 8, latent 128"
    python benchmarks/continuous.py --only speed

Trains every model with run/train_continuous.sh on the bundled text, on one thread; finished runs are not run again.
All are measured on the whole of the held-out text, in rows of 128 tokens, and for the share of rows without an error
of 32 and 512 too. Speeds are measured in turn in one process.

Needs matplotlib. Writes `continuous.csv`, `continuous_speed.csv` and `continuous.png` to --output_dir.
"""

import argparse
import os
import re
import subprocess
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from auto_compressor import ContinuousTextAutoencoder, ContinuousTextAutoencoderConfig
from auto_compressor.continuous_text_autoencoder.metrics import NOISE_LEVELS, measure_continuous
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_VALIDATION_TEXT
from measuring import in_turn, print_table, write_rows


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


ROOT = Path(__file__).parents[1]
# name of the model -> variables of run/train_continuous.sh; latents have 16 numbers per token where ratios differ
RUNS = {
    "ratio 4, latent 4": {"LATENT": "4"},
    "ratio 4, latent 16": {"LATENT": "16"},
    "ratio 4, latent 64": {},
    "ratio 2, latent 32": {"CHUNK": "2", "LATENT": "32"},
    "ratio 8, latent 128": {"CHUNK": "8", "LATENT": "128"},
    "ratio 16, latent 256": {"CHUNK": "16", "LATENT": "256"},
    "ratio 4, latent 64, conv": {"ARCHITECTURE": "conv", "HIDDEN": "96", "TIED": "false", "BLOCKS": "2 2"},
}
DEFAULT_STEPS = 800
LENGTHS = (32, 128, 512)
BATCH_SIZE, LENGTH = 16, 128
METRICS = ("token_accuracy", "random_token_accuracy", *(f"noise_{level}_token_accuracy" for level in NOISE_LEVELS))
METRICS += ("bits_per_latent",)


# Quality


def train(name: str, output_dir: Path, steps: int) -> Path:
    """Runs the training script on one thread, unless the model is there already; returns its folder."""
    folder = (output_dir / f"{name.replace(', ', '_').replace(' ', '_')}_{steps}").resolve()
    if not (folder / "eval_results.json").exists():
        settings = {"OUT": str(folder), "STEPS": str(steps), "NUM_GPUS": "0", **RUNS[name]}
        environment = os.environ | settings | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        folder.mkdir(parents=True, exist_ok=True)
        command = ["bash", "run/train_continuous.sh", "--eval_strategy", "no"]
        with (folder / "benchmark.log").open("w") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise RuntimeError(f"run/train_continuous.sh stopped with {done.returncode}, see {log.name}.")
    return folder


def held_out_rows(length: int) -> torch.LongTensor:
    """The tokens of the held-out text in rows, without what is left at its end."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    text = BUNDLED_VALIDATION_TEXT.read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    return ids[: len(ids) // length * length].view(-1, length)


@torch.no_grad()
def sequence_accuracy(model: ContinuousTextAutoencoder, length: int) -> float:
    """The share of rows of so many tokens that come back without an error."""
    rows = held_out_rows(length)
    exact = [(model.reconstruct(part) == part).all(dim=1) for part in rows.split(BATCH_SIZE * LENGTH // length)]
    return torch.cat(exact).double().mean().item()


def measure(name: str, folder: Path) -> dict[str, float]:
    """Figures of the held-out text in rows of `LENGTH` tokens, and the share of whole rows of all `LENGTHS`."""
    model = AutoModel.from_pretrained(folder).eval()
    figures = measure_continuous(model, ((part, None) for part in held_out_rows(LENGTH).split(BATCH_SIZE)))
    row = {"model": name, "parameters": model.num_parameters()} | {metric: figures[metric] for metric in METRICS}
    return row | {f"sequence_accuracy_{length}": sequence_accuracy(model, length) for length in LENGTHS}


def curves(rows: list[dict]) -> dict[str, dict[int, dict]]:
    """The chunk models over the width of latents, and over ratios at as many numbers per token; title -> x -> row."""
    sizes = {row["model"]: re.fullmatch(r"ratio (\d+), latent (\d+)", row["model"]) for row in rows}
    chunks = [(int(sizes[row["model"]][1]), int(sizes[row["model"]][2]), row) for row in rows if sizes[row["model"]]]
    widths = {latent: row for ratio, latent, row in sorted(chunks, key=lambda chunk: chunk[1]) if ratio == 4}
    ratios = {ratio: row for ratio, latent, row in sorted(chunks, key=lambda chunk: chunk[0]) if latent == 16 * ratio}
    return {"width of a latent of 4 tokens": widths, "tokens per latent, of 16 numbers per token": ratios}


def plot_quality(rows: list[dict], path: Path):
    """Shares that come back, over the width of latents and over ratios."""
    columns = {"token_accuracy": "tokens", "random_token_accuracy": "uniformly random tokens"}
    columns |= {f"noise_{level}_token_accuracy": f"tokens, noise of {level} std on latents" for level in NOISE_LEVELS}
    columns |= {f"sequence_accuracy_{length}": f"whole rows of {length} tokens" for length in LENGTHS}
    figure, panels = plt.subplots(1, 2, figsize=(13, 4.5), sharey=True)
    for axes, (title, found) in zip(panels, curves(rows).items(), strict=True):
        for column, label in columns.items():
            style = "o--" if column.startswith("sequence") else "o-"
            axes.plot([str(x) for x in found], [row[column] for row in found.values()], style, label=label)
        axes.set(ylim=(0, 1.02), xlabel=title)
    panels[0].set_ylabel("share that comes back of held-out text")
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


# Speed


def new_models() -> dict[str, ContinuousTextAutoencoder]:
    """Both architectures for the bundled tokenizer, of the widths that `RUNS` trains."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)), "latent_dim": 64}
    chunk = {"architecture": "chunk", "hidden_size": 256, "tie_word_embeddings": True, "kl_clip": 0.5}
    configs = {"chunk": ContinuousTextAutoencoderConfig(**sizes, **chunk)}
    configs["conv"] = ContinuousTextAutoencoderConfig(**sizes)
    return {name: ContinuousTextAutoencoder(config) for name, config in configs.items()}


def measure_speed(repeats: int = 10) -> list[dict]:
    """Tokens per second of a training step without its optimizer, and of decoding the latents of a batch."""
    models, ids = new_models(), held_out_rows(LENGTH)[:BATCH_SIZE]
    latents = torch.randn(BATCH_SIZE, LENGTH // 4, 64)

    @torch.no_grad()
    def decode(model: ContinuousTextAutoencoder):
        model.eval().decode(latents)

    def train_step(model: ContinuousTextAutoencoder):
        model.zero_grad()
        model.train()(ids, labels=ids).loss.backward()

    rows = []
    for what, call in {"forward and backward": train_step, "decode": decode}.items():
        calls = {name: lambda model=model, call=call: call(model) for name, model in models.items()}
        rates = {name: ids.numel() / time for name, time in in_turn(calls, repeats).items()}
        row = {"measure": f"{what}, {BATCH_SIZE} x {LENGTH} tokens, tokens/s"} | rates
        rows.append(row | {"chunk / conv": rates["chunk"] / rates["conv"]})
    parameters = {name: model.num_parameters() for name, model in models.items()}
    return [*rows, {"measure": "parameters", **parameters, "chunk / conv": parameters["chunk"] / parameters["conv"]}]


# All of it


def report_quality(args: argparse.Namespace):
    names = track(args.models, "Training and measuring", console=Console(stderr=True))
    rows = [measure(name, train(name, args.output_dir, args.steps)) for name in names]
    print_table(f"Held-out text after {args.steps:,} steps of {BATCH_SIZE} x {LENGTH} tokens", rows, width=200)
    suffix = "" if args.steps == DEFAULT_STEPS else f"_{args.steps}"
    write_rows(rows, args.output_dir / f"continuous{suffix}.csv")
    plot_quality(rows, args.output_dir / f"continuous{suffix}.png")


def report_speed(args: argparse.Namespace):
    rows = measure_speed()
    print_table("Speed on one thread", rows)
    write_rows(rows, args.output_dir / "continuous_speed.csv")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--models", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--only", choices=["quality", "speed"])
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmark_continuous"))
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.only != "quality":
        report_speed(args)
    if args.only != "speed":
        report_quality(args)


if __name__ == "__main__":
    main()

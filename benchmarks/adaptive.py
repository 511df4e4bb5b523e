"""Byte language models with adaptive borders beside the GRU baseline of as many parameters: bits per byte, and speed.

    python benchmarks/adaptive.py                       # 1,600 steps of every model, an hour and a half on one thread
    python benchmarks/adaptive.py --only quality --learning_rate 3e-3 --models "baseline, carried" \
        "all options, loss weights"
    python benchmarks/adaptive.py --only speed
    python benchmarks/adaptive.py --only quality --learning_rate 2e-3 --models "baseline, carried" \
        "all options, loss weights" --steps 3000 4000                  # in equal time, by the speeds of training

Trains every model with run/train_adaptive.sh on the bundled text, on one thread; finished runs are not run again. All
read the whole of the held-out text, window by window and in one piece, beside compressors that have seen the training
text. Speeds are measured in turn in one process.

Needs matplotlib; zstd and zpaq (Debian packages) are left out where they are not installed. Writes `adaptive.csv`,
`adaptive_speed.csv` and `adaptive.png` to --output_dir.
"""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

import matplotlib
import torch
from compressors import LIBRARIES, program_size
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, HfArgumentParser, PreTrainedModel
from transformers.utils import logging

from auto_compressor import AdaptiveByteConfig, GRUByteConfig
from auto_compressor.byte_lm.arguments import AdaptiveByteArguments
from auto_compressor.byte_lm.family import load_byte_lm
from auto_compressor.byte_lm.metrics import measure_byte_lm
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.hierarchical_autoencoder.patching import cumulative_borders
from measuring import cpu_seconds, in_turn, print_table, write_rows


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


ROOT = Path(__file__).parents[1]
CARRIED = ["--no_window_end_target", "--carry_state"]
LOSS_WEIGHTS = ["--encoder_loss_weight", "0.1", "--meta_loss_weight", "0.1"]
OPTIONS = [*CARRIED, "--add_encoder_states", "--detach_meta_targets"]
ALL = [*OPTIONS, "--target_ratios", "4", "4"]
TWO_LEVELS = ["--num_levels", "2", "--hidden_size", "164"]  # 1,155,567 parameters, 917 fewer than three levels of 128
# name of the model -> flags of run/train_adaptive.sh, or of run/train_baseline.sh
RUNS = {
    "baseline": [],
    "baseline, no end in windows": ["--no_window_end_target"],
    "baseline, carried": CARRIED,
    "parity": [],
    "encoder states": ["--add_encoder_states"],
    "detached targets": ["--detach_meta_targets"],
    "target ratios": ["--target_ratios", "4", "4"],
    "no end in windows": ["--no_window_end_target"],
    "carried": CARRIED,
    "loss weights": LOSS_WEIGHTS,
    "all options": ALL,
    "all options, loss weights": [*ALL, *LOSS_WEIGHTS],
    "two levels": [*OPTIONS, *LOSS_WEIGHTS, *TWO_LEVELS, "--target_ratios", "4"],
    "baseline, two levels": [*CARRIED, *TWO_LEVELS],
}
EQUAL_TIME = ("baseline, carried", "all options, loss weights", "two levels", "baseline, two levels")
DEFAULT_STEPS, DEFAULT_RATE = 1600, "3e-4"
STREAM_BYTES = 2**14  # of one piece of a text
COLUMNS = ("bits_per_byte", "bits_per_byte_window", "byte_encoder_bpb", "byte_decoder_bpb")
COLUMNS += ("level_1_compression_ratio", "level_2_compression_ratio")
COMPRESSORS = {
    "zstd -19": "zstd -q -19 --long=27 {source} -o {target}",  # sees all of the training text
    "zpaq -m5": "zpaq a {target} {source} -m5",
}


# Bits per byte


def train(name: str, output_dir: Path, steps: int, rate: str) -> Path:
    """Runs the training script on one thread, unless the model is there already; returns its folder."""
    suffix = "" if rate == DEFAULT_RATE else f"_{rate}"
    folder = (output_dir / f"{name.replace(', ', '_').replace(' ', '_')}_{steps}{suffix}").resolve()
    if not (folder / "eval_results.json").exists():
        settings = {"OUT": str(folder), "MAX_STEPS": str(steps), "SAVE": "500", "DATA": "bundled", "LR": rate}
        environment = os.environ | settings | {"NUM_GPUS": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        folder.mkdir(parents=True, exist_ok=True)
        script = "run/train_baseline.sh" if name.startswith("baseline") else "run/train_adaptive.sh"
        # The evaluation at the end of training would count as training time.
        command = ["bash", script, *RUNS[name], "--eval_strategy", "no"]
        with (folder / "benchmark.log").open("w") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise RuntimeError(f"{script} stopped with {done.returncode}, see {log.name}.")
    return folder


def measure(name: str, folder: Path, steps: int) -> dict[str, float]:
    """Figures of the whole held-out text, read in pieces of `STREAM_BYTES` and in windows."""
    model, text = AutoModelForCausalLM.from_pretrained(folder).eval(), BUNDLED_VALIDATION_TEXT.read_bytes()
    figures = measure_byte_lm(model, text, num_lanes=len(text) // STREAM_BYTES, carry_state=True)
    windows = measure_byte_lm(model, text)
    figures |= {key: windows[key] for key in ("byte_encoder_bpb", "byte_decoder_bpb")}
    figures["bits_per_byte_window"] = windows["bits_per_byte"]
    effective = getattr(model, "num_effective_parameters", model.num_parameters())
    counts = {"parameters": model.num_parameters(), "effective_parameters": effective}
    return {"model": name, "steps": steps} | counts | {column: figures.get(column) for column in COLUMNS}


def compressed_sizes(data: bytes) -> dict[str, int]:
    """Bytes of what every compressor that is there makes of the data."""
    found = {name: command for name, command in COMPRESSORS.items() if shutil.which(command.split()[0])}
    sizes = {name: program_size(command, data) for name, command in found.items()}
    return {"xz -9e": len(LIBRARIES["xz -9e"](data))} | sizes


def compressor_rows() -> list[dict]:
    """Bits per byte of the held-out text behind the training text, and by itself."""
    before, text = BUNDLED_TRAIN_TEXT.read_bytes(), BUNDLED_VALIDATION_TEXT.read_bytes()
    both, first, alone = (compressed_sizes(data) for data in (before + text, before, text))
    return [
        {"model": f"{name}, {how}", "bits_per_byte": 8 * size / len(text)}
        for name in both
        for how, size in (("after the training text", both[name] - first[name]), ("by itself", alone[name]))
    ]


def plot_rates(rows: list[dict], path: Path):
    """Bits per byte of models and compressors, as bars."""
    rows = sorted((row for row in rows if "by itself" not in row["model"]), key=lambda row: -row["bits_per_byte"])
    colours = {"baseline": "tab:grey", "xz": "tab:olive", "zstd": "tab:olive", "zpaq": "tab:olive"}
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(rows) + 1.2))
    names = [row["model"] for row in rows]
    bars = axes.barh(names, [row["bits_per_byte"] for row in rows])
    for bar, name in zip(bars, names, strict=True):
        bar.set_color(next((colour for start, colour in colours.items() if name.startswith(start)), "tab:blue"))
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.margins(x=0.12)
    axes.set(xlabel="bits per byte of the held-out text", title="Grey: the GRU baseline; green: compressors")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


# Speed


def new_models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    configs = {"adaptive": AdaptiveByteConfig(), "baseline": GRUByteConfig()}
    return {name: AutoModelForCausalLM.from_config(config) for name, config in configs.items()}


def text_windows(num_rows: int, length: int) -> torch.LongTensor:
    text = torch.tensor(list(BUNDLED_VALIDATION_TEXT.read_bytes()[: num_rows * length]))
    return text.view(num_rows, length)


def model_of(name: str) -> PreTrainedModel:
    """The model of a run, before training."""
    config_class = GRUByteConfig if name.startswith("baseline") else AdaptiveByteConfig
    (arguments,) = HfArgumentParser(AdaptiveByteArguments).parse_args_into_dataclasses(RUNS[name])
    torch.manual_seed(0)
    return load_byte_lm(config_class, arguments)


def training_speed(repeats: int = 20) -> list[dict]:
    """Steps of 8 windows of 128 bytes, of the models that are compared at equal time, in CPU time."""
    ids = text_windows(8, 128)

    def step(model: PreTrainedModel, optimizer: torch.optim.Optimizer):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    steps = {}
    for name in EQUAL_TIME:
        model = model_of(name).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=1e-2, fused=True)
        steps[name] = lambda model=model, optimizer=optimizer: step(model, optimizer)
    rates = {name: ids.numel() / time for name, time in in_turn(steps, repeats, cpu_seconds).items()}
    first, *others = EQUAL_TIME
    return [row("training, bytes/s of CPU time", f"{name} / {first}", rates[name], rates[first]) for name in others]


def borders_in_loops(scores: torch.Tensor, threshold: float) -> torch.BoolTensor:
    """[`cumulative_borders`] row by row."""
    borders = torch.zeros_like(scores, dtype=torch.bool)
    for row, values in enumerate(scores):
        run = 0.0
        for position, score in enumerate(values):
            run = run + float(score) if position else 0.0
            if position == 0 or run >= threshold:
                borders[row, position], run = True, 0.0
    return borders


def border_speed() -> list[dict]:
    rows = []
    for size in ((8, 128), (8, 1024), (64, 1024), (64, 8192)):
        scores = 3 * torch.rand(size)
        calls = {
            "vectorised": lambda scores=scores: cumulative_borders(scores, 20.0),
            "in loops": lambda scores=scores: borders_in_loops(scores, 20.0),
        }
        times = in_turn(calls, 3)
        name = f"borders of {size[0]} x {size[1]} positions, calls/s"
        rows.append(row(name, "vectorised / in loops", 1 / times["vectorised"], 1 / times["in loops"]))
    return rows


@torch.no_grad()
def generation_speed(num_bytes: int = 128) -> list[dict]:
    """Greedy generation after one window, cached and by reading everything again for every byte."""
    rows = []
    for name, model in new_models().items():
        model.eval()
        for batch_size in (1, 8, 32):
            ids = text_windows(batch_size, 128)
            options = {"max_new_tokens": num_bytes, "min_new_tokens": num_bytes, "do_sample": False}

            def generate(use_cache: bool, model=model, ids=ids, options=options):
                return model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **options)

            times = in_turn({"cached": lambda: generate(True), "recomputed": lambda: generate(False)}, 1)
            rates = {how: batch_size * num_bytes / time for how, time in times.items()}
            what = f"generation of {name}, batch {batch_size}, bytes/s"
            rows.append(row(what, "cached / recomputed", rates["cached"], rates["recomputed"]))
    return rows


def row(measure: str, what: str, first: float, second: float) -> dict:
    return {"measure": measure, "what": what, "first": first, "second": second, "ratio": first / second}


# All of it


def measure_quality(args: argparse.Namespace):
    numbers = args.steps * len(args.models) if len(args.steps) == 1 else args.steps
    runs = track(list(zip(args.models, numbers, strict=True)), "Training and measuring", console=Console(stderr=True))
    rows = [
        measure(name, train(name, args.output_dir, steps, args.learning_rate), steps) for name, steps in runs
    ] + compressor_rows()
    print_table(f"Held-out text after training at {args.learning_rate}", rows)
    default = (args.steps, args.learning_rate) == ([DEFAULT_STEPS], DEFAULT_RATE)
    suffix = "" if default else f"_{'_'.join(map(str, args.steps))}_{args.learning_rate}"
    write_rows(rows, args.output_dir / f"adaptive{suffix}.csv")
    plot_rates(rows, args.output_dir / f"adaptive{suffix}.png")


def measure_speed(args: argparse.Namespace):
    rows = training_speed() + border_speed() + generation_speed()
    print_table("Speed on one thread", rows)
    write_rows(rows, args.output_dir / "adaptive_speed.csv")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[DEFAULT_STEPS], help="one number, or one for each model"
    )
    parser.add_argument("--learning_rate", default=DEFAULT_RATE)
    parser.add_argument("--models", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--only", choices=["quality", "speed"])
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmark_adaptive"))
    args = parser.parse_args()
    if len(args.steps) not in (1, len(args.models)):
        parser.error(
            f"--steps must be one number, or one for each of the {len(args.models)} --models, got {args.steps}."
        )
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.only != "quality":
        measure_speed(args)
    if args.only != "speed":
        measure_quality(args)


if __name__ == "__main__":
    main()

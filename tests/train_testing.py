"""Running `train.py` in tests, and reading what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file


ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "train.py"]


def common_arguments(cache_dir, output_dir):
    return (
        f"--use_cpu --cache_dir {cache_dir} --output_dir {output_dir} --report_to none --disable_tqdm true"
        " --max_train_samples 16 --max_eval_samples 4 --per_device_train_batch_size 2 --logging_steps 1"
        " --learning_rate 1e-2"
    ).split()


def environment():
    """That of a user whose environment is the running one."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_command(*command, **variables):
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=180,
    )


def read_json(path):
    return json.loads(path.read_text())


def weights_in(folder):
    return load_file(folder / "model.safetensors")


def metrics_of(folder):
    """What was measured in the evaluation, without its speed."""
    return {
        name: value
        for name, value in read_json(folder / "eval_results.json").items()
        if name.startswith("eval_") and not name.endswith(("runtime", "per_second", "preparation_time"))
    }


def losses_in(folder):
    history = read_json(folder / "trainer_state.json")["log_history"]
    return [{k: v for k, v in logs.items() if k.endswith("loss") or k == "step"} for logs in history if "loss" in logs]

"""Running `train.py` in tests, and reading what it wrote."""

import gc
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file


ROOT = Path(__file__).parents[1]
# Forks processes of one that has imported what takes seconds, and has run nothing.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train", "pytest", "hypothesis"])


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


def run_forked(command, variables, stdout, stderr):
    """`python command` in this process, with these variables; what it prints goes to two files."""
    for path, number in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    gc.freeze()
    torch.set_num_threads(1)
    os.chdir(ROOT)
    os.environ |= variables
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def variables_of_processes(number):
    """What torchrun sets in each of `number` processes; nothing for one."""
    if number == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(number)]
    return [{name: str(value) for name, value in variables.items()} for variables in ranks]


def run_program(*command, num_processes=1):
    """
    `python command`, or torchrun with it, without the seconds of its imports. What is about imports, or about how a
    program is started, needs [`run_command`].
    """
    command = [str(part) for part in command]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank, variables in enumerate(variables_of_processes(num_processes)):
            args = (command, environment() | variables, f"{folder}/{rank}.stdout", f"{folder}/{rank}.stderr")
            processes.append(FORKS.Process(target=run_forked, args=args))
            processes[-1].start()
        for process in processes:
            process.join(timeout=180)
            process.kill()
            process.join()
        said = [[path.read_text() for path in sorted(Path(folder).glob(f"*.{name}"))] for name in ("stdout", "stderr")]
    code = next((process.exitcode for process in processes if process.exitcode), 0)
    return subprocess.CompletedProcess(command, code, *map("".join, said))


def start_script(script, *arguments, **variables):
    """Runs `bash run/script arguments`, whose `python` only notes its arguments; returns what it said, and these."""
    with tempfile.TemporaryDirectory() as folder:
        stub, given = Path(folder) / "python", Path(folder) / "given"
        stub.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {given}\n')
        stub.chmod(0o755)
        path = f"{folder}:{environment()['PATH']}"
        done = run_command("bash", f"run/{script}", *arguments, **variables | {"PATH": path})
        assert done.returncode == 0, done.stderr
        return done, given.read_text().split("\0")[:-1]


def run_script(script, *arguments, **variables):
    """`bash run/script arguments`, whose `python train.py ...` is run by [`run_program`]."""
    done, command = start_script(script, *arguments, **variables)
    ran = run_program(*command)
    return subprocess.CompletedProcess(ran.args, ran.returncode, done.stdout + ran.stdout, done.stderr + ran.stderr)


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

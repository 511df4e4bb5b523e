"""The wheel, installed without the repository: it holds the package alone, trains, compresses and generates."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest


pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
TRAIN = "--config_name tiny --do_train --use_cpu --max_steps 2 --block_size 128 --summary_length 4 --report_to none"
TRAIN += " --max_train_samples 16 --per_device_train_batch_size 2 --segments_per_substep 2 --training_substeps 1"


def run(folder, *command):
    """Runs a command in `folder`, with the packages of its environment only; returns its output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = str(ROOT / "tests" / "commands")
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def package_files():
    """Every file of the package in the repository."""
    files = [path for path in (ROOT / "auto_compressor").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built, without a network, from a copy: setuptools leaves files behind, and would ship those of an old build."""
    copy, folder = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "checkpoints", "fixtures")
    shutil.copytree(ROOT, copy, ignore=ignored)
    run(copy, sys.executable, "-c", BUILD, folder)
    (wheel,) = folder.glob("auto_compressor-*.whl")
    return wheel


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The programs of an environment with the wheel, whose dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("environment")
    run(folder, sys.executable, "-m", "venv", folder)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    programs = Path(paths["scripts"])
    run(folder, programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel)
    # As paths alone: the files *.pth in them, that of an editable installation too, are not read.
    dependencies = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (Path(paths["purelib"]) / "dependencies.pth").write_text("\n".join(dependencies))
    return programs


@pytest.fixture(scope="module")
def model(programs, tmp_path_factory):
    """Trained in an empty folder."""
    folder = tmp_path_factory.mktemp("training")
    command = [programs / "auto-compressor", "train", *TRAIN.split(), "--cache_dir", "cache", "--output_dir", "model"]
    run(folder, *command)
    return folder / "model"


def test_wheel_holds_the_package_alone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"auto_compressor", f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert {name for name in names if name.startswith("auto_compressor/")} == package_files()
    assets = {"LICENSE.md", "train.txt", "validation.txt", "tiny/config.json", "tokenizer/tokenizer.json"}
    assert {f"auto_compressor/assets/{name}" for name in assets} <= names


def test_the_wheel_is_what_runs(programs, tmp_path):
    code = "import auto_compressor as a, importlib.metadata as m; print(m.version('auto-compressor'), a.__file__)"
    version, path = run(tmp_path, programs / "python", "-c", code).strip().split(maxsplit=1)
    assert Path(path).is_relative_to(programs.parent)
    assert run(tmp_path, programs / "auto-compressor", "--version") == f"auto-compressor {version}\n"


def test_train_summarize_generate(programs, model, tmp_path):
    command = programs / "auto-compressor"
    (tmp_path / "text.txt").write_text("In the beginning God created the heaven and the earth. " * 20)
    run(tmp_path, command, "summarize", "text.txt", "-o", "text.safetensors", "--model", model)
    arguments = ["--softprompt", "text.safetensors", "--prompt", "And the", "--max-new-tokens", 4, "--model", model]
    assert run(tmp_path, command, "generate", *arguments).strip()


def test_torchrun_on_two_processes(programs, model, tmp_path):
    """The tokenised text is that of the first training."""
    command = [programs / "python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    command += ["-m", "auto_compressor.train", *TRAIN.split(), "--cache_dir", model.parent / "cache"]
    run(tmp_path, *command, "--output_dir", "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()

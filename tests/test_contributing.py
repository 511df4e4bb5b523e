"""What CONTRIBUTING.md says: a family from its code blocks is trained, loaded and listed; what it names is there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Path of a file, alone on its line, and the block that it consists of.
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))
(ENTRY,) = re.findall(r"^`auto_compressor/families.py`, [^\n]*\n\n```python\n(.*?)^```", PAGE, flags=re.M | re.DOTALL)
NAME = "bag_of_bytes"
SHARED_TESTS = ("conftest.py", "modeling_testing.py", "train_testing.py", "test_layout.py", "commands")
TRAIN = "train.py --do_train --do_eval --max_steps 2 --max_train_samples 8 --max_eval_samples 4 --use_cpu"
TRAIN += f" --model_type {NAME} --report_to none --disable_tqdm true --cache_dir cache --output_dir out"
LOAD = """
import auto_compressor
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
logits = model(**tokenizer("In the beginning", return_tensors="pt")).logits
print(type(model).__name__, type(tokenizer).__name__, *logits.shape)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with one more family: its entry, and its files."""
    copy = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "auto_compressor", copy / "auto_compressor", ignore=ignored)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml", *(ROOT / "tests" / name for name in SHARED_TESTS)]:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(path, target, ignore=ignored) if path.is_dir() else shutil.copy(path, target)
    families = copy / "auto_compressor" / "families.py"
    families.write_text(re.sub(r"^}", ENTRY + "}", families.read_text(), count=1, flags=re.MULTILINE))
    for name, text in FILES.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    return copy


def run(folder, *command):
    """Runs Python in the copy, and returns what it prints."""
    path = os.pathsep.join([str(folder), str(folder / "tests" / "commands")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(copy):
    printed = run(copy, *TRAIN.split())
    assert "eval_loss" not in printed and "loss" in printed  # the table names the metrics of a set
    return copy


def test_a_family_is_a_folder_a_page_and_tests():
    folders = {f"auto_compressor/{NAME}", f"auto_compressor/{NAME}/commands", f"tests/{NAME}", "docs"}
    assert {str(Path(name).parent) for name in FILES} == folders
    assert ENTRY.strip() == f'"{NAME}": ("{NAME}",),'


def test_it_is_trained_and_saved(trained):
    assert json.loads((trained / "out" / "config.json").read_text())["model_type"] == NAME
    assert (trained / "out" / "evaluation.csv").is_file()


def test_auto_classes_load_it(trained):
    assert run(trained, "-c", LOAD).split() == ["BagOfBytesForCausalLM", "ByteTokenizer", "1", "17", "259"]


def test_the_command_lists_and_runs_it(trained):
    help_text = run(trained, "-m", "auto_compressor.cli.main", "--help")
    assert "Bag of bytes:\n  next-bytes " in help_text
    (trained / "text.txt").write_text("In the beginning")
    table = run(trained, "-m", "auto_compressor.cli.main", "next-bytes", "text.txt", "--model", "out")
    assert table.count("%") == 5


def test_its_tests_and_those_of_the_layout_pass(copy):
    tests = ["tests/test_layout.py", f"tests/{NAME}", "-k", f"{NAME} or cycles or without_torch"]
    printed = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert " passed" in printed and "failed" not in printed


def test_its_blocks_are_in_the_style_of_the_package(copy):
    for arguments in (["check"], ["format", "--check"]):
        run(copy, "-m", "ruff", *arguments, *(name for name in FILES if name.endswith(".py")))


# What the page names


def test_scripts_and_links_exist():
    named = set(re.findall(r"(?:run|benchmarks|examples|findings)/\w+\.(?:sh|py|txt|md)", PAGE))
    named |= set(re.findall(r"\]\(([\w/.]+)\)", PAGE))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []

"""What the README names is there: scripts, flags, variables, sub-commands, Python names."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import HfArgumentParser

import auto_compressor
from auto_compressor.cli import main as command
from auto_compressor.families import MODEL_TYPES, training_family


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_scripts_exist():
    scripts = set(re.findall(r"(?:run|benchmarks|tests)/(?:\w+/)*\w+\.(?:sh|py)", README))
    assert {
        "run/setup.sh",
        "run/quickstart.sh",
        "run/test.sh",
        "run/train.sh",
        "run/train_adaptive.sh",
        "run/train_baseline.sh",
        "benchmarks/autocompressor.py",
        "run/train_activation.sh",
        "run/train_continuous.sh",
        "benchmarks/adaptive.py",
        "benchmarks/activation.py",
        "benchmarks/continuous.py",
        "benchmarks/latents_downstream.py",
    } <= scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_flags_exist():
    groups = [training_family(model_type).argument_groups for model_type in MODEL_TYPES]
    known = {flag for group in groups for flag in HfArgumentParser(group)._option_string_actions}
    commands = [path for path in (ROOT / "auto_compressor").rglob("*.py") if path.parent.name in ("cli", "commands")]
    sources = [path.read_text() for path in commands]
    sources += [path.read_text() for path in [ROOT / "auto_compressor/train.py", *(ROOT / "benchmarks").glob("*.py")]]
    known |= set(re.findall(r'"(--[\w-]+)"', "".join(sources)))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) <= known


@pytest.mark.parametrize(
    "script, section",
    [
        ("train.sh", "Train"),
        ("train_hierarchical.sh", "Bytes to codes and back"),
        ("train_adaptive.sh", "Adaptive borders"),
        ("train_activation.sh", "A smaller key/value cache"),
        ("train_continuous.sh", "Tokens to vectors and back"),
    ],
)
def test_variables_of_run_scripts_exist(script, section):
    script = (ROOT / "run" / script).read_text()
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", README, flags=re.MULTILINE | re.DOTALL)
    rows = [line.split("|")[1] for line in text.splitlines() if re.match(r"\| `[A-Z]+", line)]
    variables = re.findall(r"`([A-Z_]+)`", " ".join(rows))
    assert len(variables) >= 12
    assert all(re.search(rf"^{name}=\$\{{{name}", script, flags=re.MULTILINE) for name in variables)


def test_sub_commands_exist():
    named = set(re.findall(r"^auto-compressor ([\w-]+)", README, flags=re.MULTILINE))
    assert named == {module.NAME for module in command.COMMANDS}


def test_python_blocks_are_valid():
    for language, block in BLOCKS:
        if language == "python":
            ast.parse(block)
    assert {"OPTAutoCompressorModel", "LlamaAutoCompressorModel"} <= set(auto_compressor.__all__)


def test_shell_blocks_are_valid():
    for language, block in BLOCKS:
        if language == "bash":
            assert subprocess.run(["bash", "-n"], input=block, text=True).returncode == 0


def test_recipe_for_another_base():
    """The classes of the README, on a base that the package does not name."""
    code = """
import torch
"""
    code += next(block for language, block in BLOCKS if "Phi3ForCausalLM" in block)
    code += """
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
kinds = dict(summary_length=3), dict(sum_token_id=62, eoc_token_id=63, compression_max_len=3)
for kind in kinds:
    config = Phi3AutoCompressorConfig(**sizes, **kind, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(3, 62, (1, 12))
    softprompt = model.compress(ids, segment_lengths=6)
    cached = model.generate(ids, softprompt=softprompt, max_new_tokens=4, do_sample=False)
    uncached = model.generate(ids, softprompt=softprompt, max_new_tokens=4, do_sample=False, use_cache=False)
    print(type(model).__name__, softprompt.shape[1], torch.equal(cached, uncached))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["Phi3AutoCompressorModel", "6", "True"] * 2, done.stderr

"""The AutoCompressor of SmolLM2 that comes with the package, `smollm2-ac`: packing it, what lies there, loading it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from modeling_testing import EXACT, random_ids, randomize_, tiny_base
from peft import AutoPeftModelForCausalLM, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoTokenizer

from args import ModelArguments
from auto_compressor.autocompressor.adapters import save_adapters
from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.family import lora_config
from auto_compressor.files import bases
from auto_compressor.files.bundled import BUNDLED_SMOLLM2_ADAPTERS, BUNDLED_TOKENIZER


ROOT = Path(__file__).parents[1]
FIELDS = {
    "summary_length": 3,
    "summary_source": "means",
    "summary_scale": "learned",
    "summary_residual": True,
    "segment_length": 6,
}


def pack(adapters: Path, output_dir: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pack_bundled.py", str(adapters), "--output_dir", str(output_dir)])
    runpy.run_path(str(ROOT / "run/pack_bundled.py"), run_name="__main__")


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A small Llama in place of SmolLM2; returns its folder."""
    folder = tmp_path / "smollm2"
    tiny_base("llama").save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(folder)
    monkeypatch.setattr(bases, "smollm2_checkpoint", lambda: folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(bases, "BUNDLED_SMOLLM2_ADAPTERS", tmp_path / "bundled")
    return folder


def train_and_pack(base: Path, folder: Path, monkeypatch, seed: int = 0) -> Path:
    """Adapters with random weights in `folder`, which float16 holds exactly, packed into the package."""
    model = load_autocompressor(str(base), dtype=torch.float32, **FIELDS)
    model_args = ModelArguments(lora=True, lora_r=2, lora_target_modules=["all-linear"])
    adapted = get_peft_model(model, lora_config(model, model_args))
    randomize_(adapted, seed)
    for parameter in adapted.parameters():
        parameter.data = parameter.data.half().float()
    save_adapters(adapted, type(adapted).save_pretrained, folder)
    pack(folder, folder.parent / "bundled", monkeypatch)
    return folder


@torch.no_grad()
def test_packed_adapters_are_those_that_were_trained(base, tmp_path, monkeypatch, capsys):
    trained = train_and_pack(base, tmp_path / "trained", monkeypatch)
    packed, model = load_autocompressor("smollm2-ac"), load_autocompressor(str(trained))
    ids = random_ids(2, 12)
    assert_close(packed.compress(ids), model.compress(ids), **EXACT)
    assert_close(packed(ids).logits, model(ids).logits, **EXACT)
    assert (model.compress(ids) - load_autocompressor(str(base), **FIELDS).compress(ids)).abs().max() > 0.1
    assert {tensor.dtype for tensor in load_file(tmp_path / "bundled/adapter_model.safetensors").values()} == {
        torch.float16
    }


def test_it_is_copied_once_and_anew_for_other_weights(base, tmp_path, monkeypatch):
    train_and_pack(base, tmp_path / "first", monkeypatch)
    folder = Path(bases.resolve_base("smollm2-ac"))
    written = (folder / "config.json").stat().st_mtime_ns
    assert bases.resolve_base("smollm2-ac") == str(folder)
    assert (folder / "config.json").stat().st_mtime_ns == written
    train_and_pack(base, tmp_path / "second", monkeypatch, seed=1)
    assert bases.resolve_base("smollm2-ac") != str(folder)
    assert len(list(folder.parent.iterdir())) == 2


@torch.no_grad()
def test_peft_reads_the_folder_too(base, tmp_path, monkeypatch):
    train_and_pack(base, tmp_path / "trained", monkeypatch)
    folder, ids = bases.resolve_base("smollm2-ac"), random_ids(1, 12)
    adapted = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert_close(adapted.compress(ids), load_autocompressor("smollm2-ac").compress(ids), rtol=1e-4, atol=1e-4)


def test_an_error_leaves_nothing(base, tmp_path, monkeypatch):
    train_and_pack(base, tmp_path / "trained", monkeypatch)
    (tmp_path / "bundled/adapter_config.json").write_text("{")
    with pytest.raises(ValueError):
        bases.resolve_base("smollm2-ac")
    assert list((tmp_path / "home/auto_compressor").iterdir()) == []


@pytest.mark.parametrize(("value", "message"), [(1e6, "must fit the range of float16"), (0, "must have 100 bytes")])
def test_what_cannot_be_packed(base, tmp_path, monkeypatch, value, message):
    train_and_pack(base, tmp_path / "trained", monkeypatch)
    program = runpy.run_path(str(ROOT / "run/pack_bundled.py"))
    program["packed_weights"].__globals__["MOST_BYTES"] = 100 if value == 0 else 10**7
    weights = tmp_path / "trained/adapter_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).fill_(value)
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=message):
        program["packed_weights"](weights)


# What lies in the package


def test_the_bundled_adapters():
    weights = BUNDLED_SMOLLM2_ADAPTERS / "adapter_model.safetensors"
    assert weights.stat().st_size < 10**7
    tensors = load_file(weights)
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in tensors.values())
    assert tensors["base_model.model.summary_projection.weight"].abs().max() > 0
    config = json.loads((BUNDLED_SMOLLM2_ADAPTERS / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"]) == ("llama_autocompressor", 576)
    for path in BUNDLED_SMOLLM2_ADAPTERS.iterdir():
        if path.suffix in (".json", ".md"):
            assert not any(part in path.read_text() for part in ("/root", "/work", "/home", "/tmp"))
    card = (BUNDLED_SMOLLM2_ADAPTERS / "README.md").read_text()
    assert all(word in card for word in ("license: apache-2.0", "base_model:", "load_autocompressor"))

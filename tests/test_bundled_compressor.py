"""What comes with the package for SmolLM2, `smollm2-ac` and `smollm2-cache`: packing, what lies there, loading."""

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
from auto_compressor import ActivationCompressor, load_activation_compressor, load_base_model
from auto_compressor.autocompressor.adapters import save_adapters
from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.family import lora_config
from auto_compressor.files import bases
from auto_compressor.files.bundled import BUNDLED_SMOLLM2_ADAPTERS, BUNDLED_SMOLLM2_CACHE, BUNDLED_TOKENIZER


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


@pytest.mark.parametrize(
    "changed", ["bundled/config.json", "bundled/adapter_config.json", "smollm2/tokenizer.json", "smollm2/config.json"]
)
def test_it_is_copied_anew_for_other_files(changed, base, tmp_path, monkeypatch):
    train_and_pack(base, tmp_path / "first", monkeypatch)
    folder = Path(bases.resolve_base("smollm2-ac"))
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n")
    other = Path(bases.resolve_base("smollm2-ac"))
    assert other != folder
    if changed == "bundled/config.json":
        assert (other / "config.json").read_text() == (tmp_path / changed).read_text()


def test_it_is_copied_anew_for_a_base_that_was_moved(base, tmp_path, monkeypatch):
    train_and_pack(base, tmp_path / "first", monkeypatch)
    folder = bases.resolve_base("smollm2-ac")
    monkeypatch.setattr(bases, "smollm2_checkpoint", lambda: base.rename(tmp_path / "moved"))
    other = Path(bases.resolve_base("smollm2-ac"))
    assert str(other) != folder
    assert json.loads((other / "adapted_base/base.json").read_text())["base_model_name_or_path"] == f"{tmp_path}/moved"


@torch.no_grad()
def test_peft_reads_the_folder_too(base, tmp_path, monkeypatch):
    train_and_pack(base, tmp_path / "trained", monkeypatch)
    folder, ids = bases.resolve_base("smollm2-ac"), random_ids(1, 12)
    adapted = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert_close(adapted.compress(ids), load_autocompressor("smollm2-ac").compress(ids), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_adapters_whose_base_is_in_another_cache(base, tmp_path, monkeypatch):
    trained, ids = train_and_pack(base, tmp_path / "trained", monkeypatch), random_ids(1, 12)
    expected = load_autocompressor(str(trained)).compress(ids)
    save_in_cache(load_base_model(str(base)), tmp_path / "cache", "base", "main")
    (trained / "adapted_base/base.json").write_text('{"base_model_name_or_path": "user/base"}')
    assert_close(load_autocompressor(str(trained), cache_dir=tmp_path / "cache").compress(ids), expected, **EXACT)


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


@torch.no_grad()
def test_a_packed_compressor_of_caches(base, tmp_path, monkeypatch, capsys):
    model = load_base_model(str(base))
    trained = ActivationCompressor.from_base(model)
    randomize_(trained, seed=0)
    trained.save_pretrained(tmp_path / "trained")
    pack(tmp_path / "trained", tmp_path / "packed", monkeypatch)
    assert str(tmp_path) not in (tmp_path / "packed/config.json").read_text()
    monkeypatch.setitem(bases.BUNDLED_MODELS, "smollm2-cache", tmp_path / "packed")
    packed, ids = load_activation_compressor("smollm2-cache"), random_ids(1, 120)
    assert_close(packed.state_dict(), trained.state_dict(), rtol=2**-11, atol=0)  # those of float16
    with packed.attach(model):
        cache = packed.compress(model, ids)
    assert cache.num_bytes < 120 * 2 * 4 * model.config.num_hidden_layers * model.config.hidden_size


def save_in_cache(model, cache: Path, name: str, revision: str):
    """Writes a model as a download of `user/NAME` at a revision."""
    repository = cache / f"models--user--{name}"
    model.save_pretrained(repository / "snapshots/0123")
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text("0123")


def test_a_compressor_of_the_hub_with_options(base, tmp_path):
    """They hold for its config too, which without them is looked for in another cache and revision."""
    trained = ActivationCompressor.from_base(load_base_model(str(base)))
    save_in_cache(trained, tmp_path / "cache", "compressor", "older")
    options = {"cache_dir": tmp_path / "cache", "revision": "older", "dtype": torch.float16}
    loaded = load_activation_compressor("user/compressor", compression_ratio=2.0, **options)
    assert (loaded.config.compression_ratio, loaded.dtype) == (2.0, torch.float16)
    with pytest.raises(OSError):
        load_activation_compressor("user/compressor", cache_dir=tmp_path / "cache")


def test_another_model_is_no_compressor_of_caches(base):
    with pytest.raises(ValueError, match=f"^{base} must be an activation_compressor, it is of the type llama.$"):
        load_activation_compressor(str(base))


def test_nothing_to_pack(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        pack(tmp_path, tmp_path / "packed", monkeypatch)
    assert f"{tmp_path} must have one of adapter_model.safetensors, model.safetensors." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["another model", "compressor", "adapters"])
def test_what_is_not_of_smollm2(kind, base, tmp_path, monkeypatch, capsys):
    """Another kind of model, and what was trained for another base. Nothing is written."""
    trained, other = tmp_path / "trained", base.rename(tmp_path / "other")
    if kind == "adapters":
        with pytest.raises(SystemExit):
            train_and_pack(other, trained, monkeypatch)
    else:
        model = load_base_model(str(other))
        (model if kind == "another model" else ActivationCompressor.from_base(model)).save_pretrained(trained)
        with pytest.raises(SystemExit):
            pack(trained, tmp_path / "bundled", monkeypatch)
    said = f"{trained} must have adapters or an activation_compressor that were trained for smollm2.\n"
    assert capsys.readouterr().err.endswith(said) and not (tmp_path / "bundled").exists()


# What lies in the package


def has_no_path(folder: Path) -> bool:
    texts = [path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md")]
    return not any(part in text for text in texts for part in ("/root", "/work", "/home", "/tmp"))


def test_the_bundled_compressor_of_caches():
    tensors = load_file(BUNDLED_SMOLLM2_CACHE / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()) < 20_000
    plain = ActivationCompressor(load_activation_compressor("smollm2-cache").config).state_dict()
    assert any((tensors[name].float() - plain[name]).abs().max() > 0.01 for name in tensors)  # it was trained
    config = json.loads((BUNDLED_SMOLLM2_CACHE / "config.json").read_text())
    assert (config["base_name_or_path"], config["num_hidden_layers"], config["head_dim"]) == ("smollm2", 30, 64)
    assert has_no_path(BUNDLED_SMOLLM2_CACHE)
    card = (BUNDLED_SMOLLM2_CACHE / "README.md").read_text()
    assert all(word in card for word in ("license: apache-2.0", "base_model:", "load_activation_compressor"))


def test_the_bundled_adapters():
    weights = BUNDLED_SMOLLM2_ADAPTERS / "adapter_model.safetensors"
    assert weights.stat().st_size < 10**7
    tensors = load_file(weights)
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in tensors.values())
    assert tensors["base_model.model.summary_projection.weight"].abs().max() > 0
    config = json.loads((BUNDLED_SMOLLM2_ADAPTERS / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"]) == ("llama_autocompressor", 576)
    assert has_no_path(BUNDLED_SMOLLM2_ADAPTERS)
    card = (BUNDLED_SMOLLM2_ADAPTERS / "README.md").read_text()
    assert all(word in card for word in ("license: apache-2.0", "base_model:", "load_autocompressor"))

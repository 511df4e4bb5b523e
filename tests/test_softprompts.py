"""Summary vectors on disk."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from auto_compressor import LlamaAutoCompressorConfig, LlamaAutoCompressorModel
from auto_compressor import softprompts as softprompts_module
from auto_compressor.softprompts import load_softprompt, model_fingerprint, save_softprompt


@pytest.fixture
def model():
    config = LlamaAutoCompressorConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        summary_length=3,
    )
    return LlamaAutoCompressorModel(config).eval()


@pytest.fixture
def saved(model, tmp_path):
    """A file of the summary vectors of 40 tokens."""
    softprompt = model.compress(torch.randint(3, 64, (1, 40)), segment_lengths=20)
    path = tmp_path / "text.safetensors"
    save_softprompt(path, softprompt, model, num_tokens=40)
    return path, softprompt


def test_round_trip(model, saved):
    path, softprompt = saved
    loaded = load_softprompt(path, model)
    assert torch.equal(loaded.vectors, softprompt)
    assert loaded.num_tokens == 40
    assert loaded.compression_ratio == 40 / 6
    assert loaded.stored_bytes == 6 * 32 * 4
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["compression_ratio"] == "6.667"
    assert torch.equal(load_softprompt(path).vectors, softprompt)


def test_fingerprint_is_that_of_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = LlamaAutoCompressorModel.from_pretrained(tmp_path)
    half = LlamaAutoCompressorModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model_fingerprint(model) == model_fingerprint(again) == model_fingerprint(half)


def test_vectors_take_the_dtype_of_the_model(model, saved):
    assert load_softprompt(saved[0], model.to(torch.bfloat16)).vectors.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["embed_summary.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_other_weights_are_refused(model, saved, name):
    with torch.no_grad():
        model.get_parameter(name)[0] += 0.5
    with pytest.raises(ValueError, match="other weights"):
        load_softprompt(saved[0], model)


def test_a_failed_write_leaves_the_old_file(model, saved, monkeypatch):
    path, softprompt = saved
    before = path.read_bytes()

    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(softprompts_module, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_softprompt(path, 2 * softprompt, model, num_tokens=40)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"softprompt": torch.zeros(1, 3, 31), "num_tokens": 5}, "`softprompt` must have the shape"),
        ({"softprompt": torch.zeros(1, 0, 32), "num_tokens": 5}, "`softprompt` must have the shape"),
        ({"softprompt": torch.zeros(3, 32), "num_tokens": 5}, "`softprompt` must have the shape"),
        ({"softprompt": torch.zeros(1, 3, 32), "num_tokens": 0}, "`num_tokens` must be 1 or more"),
    ],
)
def test_what_cannot_be_saved(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        save_softprompt(tmp_path / "x.safetensors", model=model, **arguments)
    assert not os.listdir(tmp_path)


def test_what_cannot_be_loaded(model, saved, tmp_path):
    path, _ = saved
    with pytest.raises(OSError, match="There is no file"):
        load_softprompt(tmp_path / "none.safetensors", model)
    save_file({"softprompt": torch.zeros(1, 3, 32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(OSError, match="holds no softprompt"):
        load_softprompt(tmp_path / "foreign.safetensors", model)
    for damaged in (path.read_bytes()[:-7], b"", b"not a file of tensors", json.dumps({}).encode()):
        path.write_bytes(damaged)
        with pytest.raises(OSError, match="is damaged"):
            load_softprompt(path, model)

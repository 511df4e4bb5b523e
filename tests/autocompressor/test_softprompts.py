"""Summary vectors on disk."""

import hashlib
import json
import os
import random
import struct
import threading

import bitsandbytes
import pytest
import torch
from damage_testing import flipped, outcomes, resized
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao import quantization

from auto_compressor import LlamaAutoCompressorConfig, LlamaAutoCompressorModel
from auto_compressor.autocompressor.softprompts import load_softprompt, save_softprompt
from auto_compressor.files.identity import model_fingerprint, weights_hash


def tiny_model(hidden_size=32):
    config = LlamaAutoCompressorConfig(
        vocab_size=64,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        summary_length=3,
    )
    return LlamaAutoCompressorModel(config).eval()


@pytest.fixture
def model():
    return tiny_model()


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
        metadata = file.metadata()
    assert (metadata["compression_ratio"], metadata["stored_bytes"]) == ("6.667", "768")
    assert torch.equal(load_softprompt(path).vectors, softprompt)


def test_fingerprint_is_that_of_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = LlamaAutoCompressorModel.from_pretrained(tmp_path)
    half = LlamaAutoCompressorModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model_fingerprint(model) == model_fingerprint(again) == model_fingerprint(half)


def test_merged_adapters_are_named(model, tmp_path):
    path = tmp_path / "text.safetensors"
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    save_softprompt(path, torch.zeros(1, 3, 32), adapted, num_tokens=40)
    load_softprompt(path, adapted)
    merged = adapted.merge_and_unload()
    with pytest.raises(ValueError, match=r"made with adapters .* this model is without: .*`merge_and_unload`"):
        load_softprompt(path, merged)
    save_softprompt(path, torch.zeros(1, 3, 32), merged, num_tokens=40)
    load_softprompt(path, merged)
    with pytest.raises(ValueError, match=r"made without adapters .* this model is with: "):
        load_softprompt(path, get_peft_model(merged, LoraConfig(target_modules=["q_proj"], r=2)))


def test_the_fingerprint_of_plain_weights_stays():
    """Files that are there must go on fitting their models: SHA-256 over names, shapes and first rows in bfloat16."""
    model, digest = tiny_model(), hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        row = parameter.detach().reshape(-1, parameter.shape[-1])[0].to(torch.bfloat16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + row.view(torch.int16).numpy().tobytes())
    assert model_fingerprint(model) == digest.hexdigest()


class Quantised(torch.Tensor):
    """What quantised weights are in torchao: a tensor of other tensors, with few operations."""

    @staticmethod
    def __new__(cls, values, scales):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scales.dtype)

    def __init__(self, values, scales):
        self.values_, self.scales = values, scales

    def dequantize(self):
        return self.values_ * self.scales

    def __tensor_flatten__(self):
        return ["values_", "scales"], None

    @classmethod
    def __tensor_unflatten__(cls, tensors, context, size, stride):
        return cls(tensors["values_"], tensors["scales"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].values_, args[0].scales)
        raise NotImplementedError(function)


@pytest.mark.parametrize("identity", [model_fingerprint, weights_hash])
def test_identity_of_quantised_weights(identity):
    found = set()
    for value, scale in ((1, 1.0), (2, 1.0), (1, 0.5), (1, 1.0)):
        torch.manual_seed(0)
        model = tiny_model()
        weight = Quantised(torch.full((32, 32), value, dtype=torch.int8), torch.full((32, 1), scale))
        model.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(weight, requires_grad=False)
        found.add(identity(model))
    assert len(found) == 3


def test_a_quantised_base(tmp_path):
    model = tiny_model()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    before = model_fingerprint(model)
    softprompt = model.compress(torch.arange(40)[None], segment_lengths=20)
    save_softprompt(tmp_path / "text.safetensors", softprompt, model, num_tokens=40)
    assert torch.equal(load_softprompt(tmp_path / "text.safetensors", model).vectors, softprompt)
    assert model_fingerprint(model) == before != model_fingerprint(tiny_model())
    assert weights_hash(model) == weights_hash(model) != weights_hash(tiny_model())


def test_4_bits_keep_their_identity():
    """Whatever order bitsandbytes keeps them in."""
    pack = bitsandbytes.functional._convert_weight_packed_for_cpu
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False)
    layer.load_state_dict({"weight": torch.randn(64, 64)})
    model = torch.nn.Sequential(layer).to("cpu")
    before, held = model_fingerprint(model), layer.weight.data.clone()
    layer.weight.data, layer.weight.quant_state = pack(layer.weight.data, layer.weight.quant_state)
    assert layer.weight.data.shape != held.shape
    assert model_fingerprint(model) == before
    layer.weight.data[:16] ^= 1
    assert model_fingerprint(model) != before


def test_vectors_take_the_dtype_of_the_model(model, saved):
    assert load_softprompt(saved[0], model.to(torch.bfloat16)).vectors.dtype == torch.bfloat16


def test_a_file_can_be_read_by_whom_the_umask_lets(saved):
    saved[0].with_name("plain").touch()
    assert saved[0].stat().st_mode == saved[0].with_name("plain").stat().st_mode


def test_another_width_is_refused(saved):
    with pytest.raises(ValueError, match="has the width 32; .* takes 64"):
        load_softprompt(saved[0], tiny_model(hidden_size=64))


def test_a_training_step_changes_the_fingerprint(model):
    before = model_fingerprint(model)
    optimizer = torch.optim.SGD([model.embed_summary.weight], lr=0.1)
    input_ids = torch.randint(3, 64, (1, 40))
    model(input_ids, segment_lengths=20, labels=input_ids).loss.backward()
    optimizer.step()
    assert model_fingerprint(model) != before


@pytest.mark.parametrize("name", ["embed_summary.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_other_weights_are_refused(model, saved, name):
    with torch.no_grad():
        model.get_parameter(name)[0] += 0.5
    with pytest.raises(ValueError, match="other weights"):
        load_softprompt(saved[0], model)


def full_disk(descriptor):
    os.ftruncate(descriptor, 4)
    raise OSError(28, "No space left on device")


def forbidden(source, target):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("name", "failure", "message"),
    [("fsync", full_disk, "No space"), ("replace", forbidden, "Permission denied")],
)
def test_a_failed_write_leaves_the_old_file(model, saved, monkeypatch, name, failure, message):
    path, softprompt = saved
    before = path.read_bytes()
    monkeypatch.setattr(os, name, failure)
    with pytest.raises(OSError, match=message):
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
        ({"softprompt": torch.zeros(1, 3, 32), "num_tokens": 2**60}, "`num_tokens` must be 1 or more, and"),
        ({"softprompt": torch.zeros(1, 3, 32), "num_tokens": 1.5}, "`num_tokens` must be an integer"),
        ({"softprompt": torch.zeros(1, 3, 32).int(), "num_tokens": 5}, "`softprompt` must hold floats"),
        ({"softprompt": torch.full((1, 3, 32), torch.nan), "num_tokens": 5}, "`softprompt` must be finite"),
        ({"softprompt": torch.full((1, 3, 32), torch.inf), "num_tokens": 5}, "`softprompt` must be finite"),
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


def test_a_file_that_is_replaced_while_it_is_read(model, tmp_path):
    path, width = tmp_path / "a.safetensors", model.config.hidden_size
    softprompts = [torch.full((4, 64, width), value) for value in (1.0, 2.0)]
    save_softprompt(path, softprompts[0], model, num_tokens=300)
    writer = threading.Thread(
        target=lambda: [save_softprompt(path, softprompts[turn % 2], model, num_tokens=300) for turn in range(100)]
    )
    writer.start()
    while writer.is_alive():
        assert len(load_softprompt(path).vectors.unique()) == 1
    writer.join()


def rewritten(path, changes=None, **tensors):
    """The file with other metadata, or without those that are `None`, and other tensors."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | (changes or {})
    metadata = {key: value for key, value in metadata.items() if value is not None}
    save_file(tensors or load_file(path), path, metadata)


def test_a_flipped_bit_is_refused(model, saved):
    """Anywhere in the vectors: the last 768 bytes."""
    path, softprompt = saved
    good = path.read_bytes()
    for place in random.Random(0).sample(range(len(good) - 768, len(good)), 100):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match="is damaged: the SHA-256 of what it holds must be"):
            load_softprompt(path, model)
    path.write_bytes(good)
    assert torch.equal(load_softprompt(path, model).vectors, softprompt)


def test_files_of_before_there_were_checksums_load(model, saved):
    path, softprompt = saved
    rewritten(path, {"sha256": None})
    assert torch.equal(load_softprompt(path, model).vectors, softprompt)


BAD_METADATA = {
    "number of tokens": ({"num_tokens": "41"}, "the SHA-256"),
    "no number": ({"num_tokens": "many"}, "its `num_tokens` must be a whole number"),
    "huge": ({"num_tokens": "9" * 5000}, "its `num_tokens` must be a whole number"),
    "none": ({"num_tokens": "0"}, "its `num_tokens` must be a whole number from 1"),
    "no name": ({"model_name": None, "sha256": None}, "its `model_name` must be a text, got None"),
    "missing": ({"num_tokens": None}, "its `num_tokens` must be a whole number"),
    "no fingerprint": ({"fingerprint": None}, "its `fingerprint` must be a SHA-256"),
    "no type": ({"model_type": None}, "its `model_type` must be a text"),
    "fingerprint": ({"fingerprint": "abc"}, "its `fingerprint` must be a SHA-256"),
    "checksum": ({"sha256": "abc"}, "its `sha256` must be a SHA-256"),
    "checksum under another name": ({"sha256": None, "sha257": "0" * 64}, "its metadata must be known"),
    "other checksum": ({"sha256": "0" * 64}, "the SHA-256 of what it holds must be 0000000000000000"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_METADATA.values(), ids=BAD_METADATA)
@pytest.mark.parametrize("with_model", [True, False])
def test_bad_metadata(model, saved, changes, message, with_model):
    rewritten(saved[0], changes)
    with pytest.raises(ValueError, match=f"text.safetensors is damaged: {message}"):
        load_softprompt(saved[0], model if with_model else None)


BAD_TENSORS = {
    "NaN": ({"softprompt": torch.full((1, 3, 32), torch.nan)}, "its vectors must be finite"),
    "infinity": ({"softprompt": torch.full((1, 3, 32), torch.inf)}, "its vectors must be finite"),
    "integers": ({"softprompt": torch.zeros(1, 3, 32, dtype=torch.int32)}, "the dtype of its vectors must be"),
    "complex": ({"softprompt": torch.zeros(1, 3, 32, dtype=torch.complex64)}, "the dtype of its vectors must be"),
    "flat": ({"softprompt": torch.zeros(3, 32)}, "the shape of its vectors must be"),
    "empty": ({"softprompt": torch.zeros(1, 0, 32)}, "the shape of its vectors must be"),
    "another name": ({"vectors": torch.zeros(1, 3, 32)}, "it must hold `softprompt` alone"),
    "one more": ({"softprompt": torch.zeros(1, 3, 32), "x": torch.zeros(1)}, "it must hold `softprompt` alone"),
}


@pytest.mark.parametrize(("tensors", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors(model, saved, tensors, message):
    """In a file without a checksum, which would find them too."""
    rewritten(saved[0], {"sha256": None}, **tensors)
    with pytest.raises(ValueError, match=f"text.safetensors is damaged: {message}"):
        load_softprompt(saved[0], model)


def test_vectors_that_another_dtype_cannot_hold(model, saved):
    save_softprompt(saved[0], torch.full((1, 3, 32), 1e6), model, num_tokens=5)
    half = model.half()
    rewritten(saved[0], {"fingerprint": model_fingerprint(half), "sha256": None})
    with pytest.raises(ValueError, match="its vectors must be finite in torch.float16"):
        load_softprompt(saved[0], half)


def test_damaged_files_are_one_value_error(saved):
    """Flipped bytes and other lengths, of the whole file and of its header alone."""
    path, _ = saved
    good, generator = path.read_bytes(), random.Random(0)
    length = struct.unpack("<Q", good[:8])[0]
    header = json.dumps(json.loads(good[8 : 8 + length]), sort_keys=True).encode()  # safetensors writes any order
    good, length = struct.pack("<Q", len(header)) + header + good[8 + length :], len(header)

    def files():
        for index in range(200):
            change = flipped if index % 3 else resized
            header = change(good[8 : 8 + length], generator)
            behind_header = struct.pack("<Q", len(header)) + header + good[8 + length :]
            yield behind_header if index % 2 else change(good, generator)

    def vectors(data):
        path.write_bytes(data)
        return load_softprompt(path).vectors.numpy().tobytes()

    refused, _, slowest = outcomes(vectors, files(), good[8 + length :])
    assert refused > 150 and slowest < 1

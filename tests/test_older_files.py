"""Checkpoints, adapters, softprompts and compressed files of before families had folders give what they gave."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close
from train_testing import ROOT
from transformers import AutoModel, AutoModelForCausalLM

from auto_compressor.autocompressor.softprompts import load_softprompt
from auto_compressor.byte_lm.codec import decompress_bytes
from auto_compressor.cache_names import as_cache
from auto_compressor.hierarchical_autoencoder.codec import decode_bytes, read_header
from auto_compressor.lossless.header import read_header as read_lossless_header


FOLDER = ROOT / "tests" / "fixtures" / "one_folder"
EXPECTED = load_file(FOLDER / "expected.safetensors")
TEXT = b"In the beginning there was the word. " * 2
IDS = torch.arange(5, 29)[None]


def model_of(name, auto_class=AutoModelForCausalLM):
    return auto_class.from_pretrained(FOLDER / name).eval()


def assert_gives(name, found):
    assert_close(found, EXPECTED[name], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_autocompressor_and_its_softprompt():
    model = model_of("autocompressor")
    softprompt = load_softprompt(FOLDER / "softprompt.safetensors", model)
    assert softprompt.num_tokens == 24
    assert_gives("autocompressor.softprompt", softprompt.vectors)
    assert_gives("autocompressor.softprompt", model.compress(IDS, segment_lengths=12))
    assert_gives("autocompressor.logits", model(IDS, softprompt=softprompt.vectors).logits[:, -1])


@torch.no_grad()
def test_adapters(tmp_path):
    folder = tmp_path / "adapters"
    shutil.copytree(FOLDER / "adapters", folder)
    for file in (folder / "adapter_config.json", folder / "adapted_base" / "base.json"):
        config = json.loads(file.read_text())
        base = folder / "adapted_base" if file.parent == folder else FOLDER / "autocompressor"
        file.write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    adapted = PeftModel.from_pretrained(model_of("autocompressor"), folder).eval()
    for model in (adapted, AutoModelForCausalLM.from_pretrained(folder).eval()):
        assert_gives("adapters.logits", model(input_ids=IDS, segment_lengths=[12, 12]).logits[:, -1])


@pytest.mark.parametrize(("name", "version"), [("text.acc", 1), ("text_2.acc", 2)])
def test_codes_of_a_hierarchical_autoencoder(name, version):
    blob = (FOLDER / name).read_bytes()
    assert decode_bytes(model_of("hierarchical", AutoModel), blob) == TEXT
    assert read_header(blob).version == version


@pytest.mark.parametrize("name", ["gru", "adaptive"])
@torch.no_grad()
def test_byte_language_models(name):
    assert_gives(f"{name}.logits", model_of(name)(torch.tensor([list(TEXT)])).logits[:, -1])


@pytest.mark.parametrize(("name", "model", "version"), [("text.acz", "gru", 1), ("text_2.acz", "adaptive", 2)])
def test_a_lossless_file(name, model, version):
    blob = (FOLDER / name).read_bytes()
    assert decompress_bytes(model_of(model), blob) == TEXT
    assert read_lossless_header(blob).version == version


@torch.no_grad()
def test_a_compressed_cache():
    base, compressor = model_of("base"), model_of("activation", AutoModel)
    with compressor.attach(base):
        cache = compressor.compress(base, IDS)
        assert_gives("activation.logits", base(IDS[:, :2], **as_cache(cache)).logits[:, -1])


@torch.no_grad()
def test_a_continuous_text_autoencoder():
    assert_gives("continuous.logits", model_of("continuous", AutoModel)(IDS).logits[:, -1])

"""Every load of the package: no code of a model's folder runs, and what is damaged is one line."""

import io
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from auto_compressor import LlamaAutoCompressorModel
from auto_compressor.autocompressor.bases import load_autocompressor, load_language_model
from auto_compressor.cli.main import main
from auto_compressor.families import MODEL_TYPES
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from auto_compressor.files.loading import load, load_tokenizer


COMMANDS = {
    "summarize": "{text} -o {tmp}/o",
    "generate": "--prompt hello",
    "perplexity": "--segment-lengths 4 4 --text {text}",
    "encode": "{text} -o {tmp}/o",
    "compress": "{text} -o {tmp}/o",
    "check-causality": "",
    "show-borders": "--text {text} -o {tmp}/o",
    "report-activation": "--text {text} -o {tmp}/o",
    "reconstruction-accuracy": "{text} -o {tmp}/o",
}


@pytest.fixture
def hostile(tmp_path):
    """A folder whose code leaves a file behind, of a model type that only this code knows."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    classes = {"AutoConfig": "code.Own", "AutoModel": "code.Own", "AutoModelForCausalLM": "code.Own"}
    config = {"model_type": "nobody_knows", "auto_map": classes | {"AutoTokenizer": ["code.Own", None]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.Own", None]}}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Own: pass\n")
    return folder


@pytest.fixture
def answers_yes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))


def run_one_line(command, folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("In the beginning there was a king.\n" * 20)
    options = COMMANDS[command].format(text=text, tmp=tmp_path).split()
    code = main([command, *options, "--model", str(folder), "--device", "cpu"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 1 and len(lines) == 1 and lines[0].startswith("auto-compressor: error: "), lines
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_code_of_a_model(command, hostile, answers_yes, tmp_path, capsys):
    error = run_one_line(command, hostile, tmp_path, capsys)
    assert "code" in error and "never run" in error
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_training_runs_no_code_of_a_model(kind, hostile, answers_yes, main, tmp_path):
    arguments = ["--model_type", kind, "--do_train", "--max_steps", 1, "--model_name_or_path", hostile]
    with pytest.raises(SystemExit) as error:
        main(*arguments)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


def test_no_tokenizer_runs_code(hostile, answers_yes, tmp_path):
    with pytest.raises(OSError, match="never run"):
        load_tokenizer(hostile)
    assert not (tmp_path / "canary").exists()


def saved_llama(folder, model_class=LlamaForCausalLM, **fields):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model_class(model_class.config_class(vocab_size=64, **sizes, **fields)).save_pretrained(folder)
    return folder


def rename_weight(folder, name):
    weights = load_file(folder / "model.safetensors")
    weights["x." + name] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("model_class", [LlamaForCausalLM, LlamaAutoCompressorModel])
@pytest.mark.parametrize("loader", [load_autocompressor, load_language_model])
def test_weights_that_are_missing_are_not_drawn_at_random(loader, model_class, tmp_path):
    folder = saved_llama(tmp_path, model_class)
    assert loader(str(folder)).embed_summary.weight.isfinite().all()  # new in an AutoCompressor of a plain model
    rename_weight(folder, "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(OSError, match=r"^Cannot load the model '.*': it lacks model.layers.0.mlp.up_proj.weight.$"):
        loader(str(folder))
    with pytest.raises(OSError, match="it lacks model.layers.0.mlp.up_proj.weight"):
        loader(str(folder.parent), subfolder=folder.name)


def test_the_summary_embeddings_of_a_trained_model_are_not_made_anew(tmp_path):
    folder = saved_llama(tmp_path, LlamaAutoCompressorModel, summary_length=3)
    rename_weight(folder, "embed_summary.weight")
    with pytest.raises(OSError, match="it lacks embed_summary.weight"):
        load_autocompressor(str(folder))
    assert load_autocompressor(str(folder), summary_length=5).embed_summary.weight.shape == (5, 8)


@pytest.mark.parametrize("field", ["num_hidden_layers", "n_layer", "num_levels"])
@pytest.mark.parametrize("number", [1001, 2**40, 10**400])
def test_a_model_of_too_many_layers_is_refused_before_it_is_made(field, number, tmp_path):
    folder = saved_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"nested": [{field: [number]}]}))
    with pytest.raises(ValueError, match=f"Cannot load .*: `{field}` in its config must be 1000 at most, got 1"):
        load(AutoConfig, str(folder))


def test_a_message_is_short_whatever_is_in_a_file(tmp_path):
    folder = saved_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "x" * 10_000}))
    with pytest.raises(OSError, match="hidden_size") as error:
        load_language_model(str(folder))
    assert len(str(error.value)) < 1000


BAD_CONFIGS = ["", "{", "[]", "7", "null", '{"model_type": 3}', '{"model_type": "llama", "hidden_size": "x"}']
BAD_CONFIGS += ['{"model_type": "llama", "num_attention_heads": 0}', "\udcff", "[" * 100_000]
BAD_CONFIGS += ['{"model_type": "adaptive_byte", "hidden_size": []}', '{"model_type": "hierarchical_autoencoder"}']


@pytest.mark.parametrize("config", BAD_CONFIGS, ids=range(len(BAD_CONFIGS)))
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_config_is_one_line(command, config, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(config.encode("utf-8", "surrogateescape"))
    run_one_line(command, folder, tmp_path, capsys)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("command", ["summarize", "perplexity", "generate", "check-causality", "report-activation"])
def test_damaged_weights_are_one_line(command, weights, tmp_path, capsys):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / weights).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    run_one_line(command, tmp_path / "model", tmp_path, capsys)

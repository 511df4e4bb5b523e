"""`auto-compressor compress` and `decompress`: what the kind of the model says, and nothing of another kind."""

import pytest
import torch
from modeling_testing import tiny_autocompressor
from test_adaptive_byte import tiny_model as tiny_byte_lm
from test_continuous_text_autoencoder import tiny_model as tiny_continuous
from test_hierarchical_autoencoder import tiny_model as tiny_hierarchical
from transformers import AutoModel, AutoTokenizer

from auto_compressor.autocompressor.commands import COMPRESS
from auto_compressor.autocompressor.registration import MODELS
from auto_compressor.autocompressor.softprompts import load_softprompt
from auto_compressor.cli.main import main
from auto_compressor.continuous_text_autoencoder.latents import load_latents, save_latents
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


TEXT = "In the beginning there was a king in the land, and he was old.\n" * 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    torch.manual_seed(0)
    made = {
        "autocompressor": tiny_autocompressor("llama", vocab_size=len(tokenizer)),
        "hierarchical": tiny_hierarchical("ema_vq"),
        "byte_lm": tiny_byte_lm("gru"),
        "continuous": tiny_continuous("chunk", vocab_size=len(tokenizer)),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
    for name in ("autocompressor", "continuous"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def run(models, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)

    def run(command, file, output, model, *options):
        return main(
            [command, str(tmp_path / file), "-o", str(tmp_path / output), "--model", str(models / model), *options]
        )

    return run


@pytest.mark.parametrize("model, options", [("hierarchical", ["--lossless"]), ("byte_lm", ["--num-streams", "2"])])
def test_files_come_back(model, options, run, tmp_path):
    assert run("compress", "text.txt", "small", model, *options) == 0
    assert run("decompress", "small", "back.txt", model) == 0
    assert (tmp_path / "back.txt").read_text() == TEXT


def test_latents_of_a_text(run, models, tmp_path, capsys):
    """The file holds the means of `encode`, and what comes back is what `reconstruct` gives."""
    assert run("compress", "text.txt", "latents", "continuous") == 0
    assert "tokens that come back" in capsys.readouterr().out
    model = AutoModel.from_pretrained(models / "continuous")
    tokenizer = AutoTokenizer.from_pretrained(models / "continuous")
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    latents, num_tokens = load_latents(tmp_path / "latents", model)
    assert torch.equal(latents, model.encode(ids).mean) and num_tokens == ids.shape[1]
    assert run("decompress", "latents", "back.txt", "continuous") == 0
    assert (tmp_path / "back.txt").read_text() == model.reconstruct(TEXT, tokenizer=tokenizer)


def test_latents_belong_to_their_weights(run, models, tmp_path, capsys):
    assert run("compress", "text.txt", "latents", "continuous") == 0
    model = AutoModel.from_pretrained(models / "continuous")
    with torch.no_grad():
        model.mean_head.weight.add_(1)
    with pytest.raises(ValueError, match="with other weights"):
        load_latents(tmp_path / "latents", model)
    with pytest.raises(ValueError, match="`num_tokens` must be those of"):
        save_latents(tmp_path / "other", torch.zeros(1, 2, model.config.latent_dim), model, num_tokens=99)
    assert run("decompress", "text.txt", "back.txt", "continuous") == 1
    assert "is damaged" in capsys.readouterr().err and not (tmp_path / "back.txt").exists()


def test_every_autocompressor_is_one_here():
    """The command names them without loading them."""
    assert COMPRESS.keys() == {model_class.config_class.model_type for model_class in MODELS}


def test_compress_is_what_the_older_verbs_do(run, tmp_path):
    assert (
        run("compress", "text.txt", "new.ac", "hierarchical")
        == run("encode", "text.txt", "old.ac", "hierarchical")
        == 0
    )
    assert (tmp_path / "new.ac").read_bytes() == (tmp_path / "old.ac").read_bytes()
    for command in ("compress", "summarize"):
        assert run(command, "text.txt", command, "autocompressor", "--segment-length", "20") == 0
    new, old = (load_softprompt(tmp_path / command).vectors for command in ("compress", "summarize"))
    assert torch.equal(new, old) and new.shape[1] > 0


@pytest.mark.parametrize(
    "command, model, options, message",
    [
        ("compress", "byte_lm", ["--lossless"], ": it is for hierarchical"),
        ("compress", "hierarchical", ["--segment-length", "3"], ": it is for AutoCom"),
        ("compress", "continuous", ["--lossless"], ": it is for hierarchical"),
        ("compress", "autocompressor", ["--fast"], "--fast must not be given with"),
        ("compress", "autocompressor", ["--best"], "--best must not be given with"),
        ("decompress", "autocompressor", [], "is of the type llama_autocompressor, it must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(command, model, options, message, run, tmp_path, capsys):
    assert run(command, "text.txt", "out", model, *options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()

"""The published implementation's numbers: every case of `fixtures/continuous_text` (see its README)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModel, get_cosine_schedule_with_warmup

from auto_compressor import ContinuousTextAutoencoder
from auto_compressor.cli.main import main
from auto_compressor.continuous_text_autoencoder.published import complete_weights
from auto_compressor.published import FORMATS, load_published
from auto_compressor.training.muon import MuonWithAdamW, muon_with_adamw


FIXTURES = Path(__file__).parents[1] / "fixtures" / "continuous_text"
CASES = json.loads((FIXTURES / "cases.json").read_text())
FAMILY = "continuous_text_autoencoder"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def cases(kind):
    return pytest.mark.parametrize("case", CASES[kind], ids=lambda case: case["name"])


def tensors_of(case) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / case.get("file", f"{case['name']}.safetensors"))


def published_weights(tensors, prefix="param."):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def own_weights(tensors, prefix) -> dict[str, torch.Tensor]:
    """Published tensors under our names, in our shapes."""
    weights = {FORMATS[FAMILY].own_name(name): tensor for name, tensor in published_weights(tensors, prefix).items()}
    return {name: tensor for name, tensor in complete_weights(weights, 1).items() if name in weights}


def published_folder(path, case) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(case["config"]))
    save_file(published_weights(tensors_of(case)), path / "model.safetensors")
    return path


@pytest.fixture
def load_model(tmp_path):
    """The model of a case: the published folder, converted by the command, as `AutoModel` loads it."""

    def load(case) -> ContinuousTextAutoencoder:
        source, target = published_folder(tmp_path / "source", case), str(tmp_path / "target")
        assert main(["convert", "--family", FAMILY, str(source), target]) == 0
        return AutoModel.from_pretrained(target)

    return load


def channels_last(tensor):
    return tensor.transpose(1, 2)


@cases("autoencoder_cases")
def test_settings(case, load_model):
    model, settings = load_model(case), case["config"]
    config = model.config
    assert type(model) is ContinuousTextAutoencoder
    assert (config.vocab_size, config.embedding_size) == (settings["vocab_size"], settings["embed_dim"])
    assert (config.hidden_size, config.latent_dim) == (settings["base_channels"], settings["latent_dim"])
    assert config.num_residual_blocks == settings["num_res_blocks"]
    assert config.total_stride == case["downsample_ratio"]
    assert sum(parameter.numel() for parameter in model.parameters()) == case["num_parameters"]


@torch.no_grad()
@cases("autoencoder_cases")
def test_encode_and_decode(case, load_model):
    tensors = tensors_of(case)
    model = load_model(case)
    encoded = model.encode(tensors["input_ids"])
    assert_close(encoded.mean, channels_last(tensors["mu"]), **CLOSE)
    assert_close(encoded.logvar, channels_last(tensors["logvar"]), **CLOSE)
    for latents, name in ((encoded.mean, "mu"), (channels_last(tensors["z"]), "z")):
        logits = model.decode(latents).logits
        assert_close(logits, channels_last(tensors[f"logits_from_{name}"]), **CLOSE)
        assert torch.equal(logits.argmax(dim=-1), tensors[f"argmax_from_{name}"])
    assert torch.equal(model.reconstruct(tensors["input_ids"]), tensors["argmax_from_mu"])


@cases("autoencoder_cases")
def test_loss_and_gradients(case, load_model, monkeypatch):
    """With the noise of the case, the loss and its gradients; padding counts as any token there."""
    tensors = tensors_of(case)
    model = load_model(case)
    ids, noise = tensors["input_ids"], channels_last(tensors["eps"])
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    output = model(ids, labels=ids, sample=True)
    assert_close(output.latents, channels_last(tensors["z"]), **CLOSE)
    assert_close(output.logits, channels_last(tensors["logits_from_z"]), **CLOSE)
    assert output.losses["reconstruction"].item() == pytest.approx(case["recon_loss_from_z"], rel=1e-5)
    assert output.losses["kl"].item() == pytest.approx(case["kl_loss"], rel=1e-5)
    assert output.loss.item() == pytest.approx(case["total_loss_from_z"], rel=1e-5)
    assert model.config.kl_loss_weight == case["kl_weight"]
    means = model(ids, labels=ids).losses["reconstruction"]
    assert means.item() == pytest.approx(case["recon_loss_from_mu"], rel=1e-5)
    output.loss.backward()
    expected = own_weights(tensors, "grad.")
    assert len(expected) == 5
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient, **CLOSE)


@cases("optimizer_cases")
def test_muon(case):
    tensors, count = tensors_of(case), len(case["shapes"])
    parameters = [torch.nn.Parameter(tensors[f"p{index}.init"].clone()) for index in range(count)]
    options = {name: case[name] for name in ("lr", "momentum", "nesterov", "ns_steps")}
    optimizer = MuonWithAdamW(parameters, [], weight_decay=case["wd"], muon_scale=1.0, **options)
    for step in range(case["steps"]):
        for index, parameter in enumerate(parameters):
            parameter.grad = tensors[f"p{index}.grad{step}"]
        optimizer.step()
        for index, parameter in enumerate(parameters):
            assert_close(parameter.detach(), tensors[f"p{index}.after{step}"], rtol=1e-6, atol=1e-7)


@cases("train_cases")
def test_training(case, load_model):
    tensors = tensors_of(case)
    model, ids = load_model(case), tensors["input_ids"]
    options = {"lr": case["lr"], "weight_decay": case["weight_decay"], "betas": tuple(case["betas"])}
    optimizer = muon_with_adamw(model, muon_scale=1.0, muon_heads=True, **options)
    names = {parameter: name for name, parameter in model.named_parameters()}
    published = {FORMATS[FAMILY].own_name(name) for name in case["orthogonalised_parameters"]}
    assert {names[parameter] for parameter in optimizer.param_groups[1]["params"]} == published
    scheduler = get_cosine_schedule_with_warmup(optimizer, case["warmup_steps"], case["total_steps"])
    for loss, lr in zip(case["losses"], case["lrs"], strict=True):
        found = F.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
        assert found.item() == pytest.approx(loss, rel=1e-5)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr])
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip_norm"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    final = own_weights(tensors, "final.")
    assert {"embed_tokens.weight", "lm_head.weight"} < set(final)
    for name, expected in final.items():
        assert_close(model.get_parameter(name).detach(), expected, **CLOSE)


@pytest.mark.parametrize("case", CASES["schedule_cases"], ids=lambda case: case["kind"])
def test_schedule(case):
    """The schedule of the Trainer, `lr_scheduler_type="cosine"`, on our optimizer."""
    optimizer = MuonWithAdamW([torch.nn.Parameter(torch.ones(2, 2))], [], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, case["warmup"], case["total"])
    for step in range(case["total"] + 1):
        if str(step) in case["factor"]:
            assert optimizer.param_groups[1]["lr"] == pytest.approx(case["factor"][str(step)], rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()


# Conversion


CASE = CASES["autoencoder_cases"][1]


def assert_converted(model):
    expected = own_weights(tensors_of(CASE), "param.")
    found = model.state_dict()
    assert set(found) - set(expected) == {f"latent_norm.{name}" for name in ("mean", "variance", "num_batches")}
    assert_close({name: found[name] for name in expected}, expected, rtol=0, atol=0)
    latents = torch.ones(1, 1, model.config.latent_dim)
    assert_close(model.normalize_latents(latents), latents)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("entry", [None, "model_state_dict"])
def test_state_dicts_need_no_settings(prefix, entry, tmp_path):
    """They follow from the shapes; whatever else the file holds beside the weights."""
    weights = {prefix + name: tensor for name, tensor in published_weights(tensors_of(CASE)).items()}
    checkpoint = weights if entry is None else {"step": 7, "optimizer": {"lr": 1.0}, entry: weights}
    torch.save(checkpoint, tmp_path / "model.pt")
    assert_converted(load_published(FAMILY, tmp_path / "model.pt"))


def test_folders_without_settings(tmp_path):
    source = published_folder(tmp_path / "source", CASE | {"config": {}})
    assert_converted(load_published(FAMILY, source))


@pytest.mark.parametrize("setting", CASE["config"])
def test_settings_of_another_model(setting, tmp_path):
    value = CASE["config"][setting]
    other = [2, 2] if isinstance(value, list) else value + 1
    source = published_folder(tmp_path / "source", CASE | {"config": CASE["config"] | {setting: other}})
    with pytest.raises(ValueError, match="must be those of its config"):
        load_published(FAMILY, source)


def test_wrong_weights(tmp_path):
    weights = published_weights(tensors_of(CASE))
    for name in ("encoder.embedding.weight", "encoder.fc_mu.weight", "encoder.blocks.1.conv.weight"):
        torch.save({key: weights[key] for key in weights if key != name}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match="must be those of its config"):
            load_published(FAMILY, tmp_path / "model.pt")
    for checkpoint in ([1], {}, {"step": 1}):
        torch.save(checkpoint, tmp_path / "model.pt")
        with pytest.raises(ValueError, match="must hold weights by name"):
            load_published(FAMILY, tmp_path / "model.pt")
    torch.save({"encoder": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="must be of the family|must be those of its config"):
        load_published(FAMILY, tmp_path / "model.pt")


def test_another_family(tmp_path, capsys):
    source = published_folder(tmp_path / "source", CASE)
    assert main(["convert", "--family", "gru_byte", str(source), str(tmp_path / "target")]) == 1
    assert "its weights are those of continuous_text_autoencoder" in capsys.readouterr().err

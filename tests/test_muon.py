"""Muon with AdamW: each update against torch's, which parameter goes where, and saving and resuming in the Trainer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_testing import EXACT, random_ids, tiny_autocompressor
from test_continuous_text_autoencoder import tiny_model
from test_hierarchical_autoencoder import tiny_model as tiny_hierarchical
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments, get_cosine_schedule_with_warmup

from auto_compressor.training.muon import MuonWithAdamW, muon_with_adamw, orthogonalize


def random_parameter(*shape, seed=0):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_orthogonalize(rows, columns, scale):
    matrix = scale * random_parameter(rows, columns, seed=rows * 13 + columns).detach()
    found = orthogonalize(matrix, ns_steps=5)
    assert found.shape == matrix.shape and found.dtype == torch.float32
    assert_close(orthogonalize(matrix.T, 5), found.T, rtol=1e-4, atol=1e-5)
    assert_close(orthogonalize(7 * matrix, 5), found, rtol=1e-4, atol=1e-4)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    aligned = left.T @ found @ right.T
    assert_close(aligned, torch.diag(aligned.diagonal()), rtol=0, atol=1e-3)
    # Only singular values that are tiny beside the norm stay behind.
    large = values > 0.05 * values.norm()
    assert ((aligned.diagonal() > 0.6) & (aligned.diagonal() < 1.3))[large].all()


def test_orthogonalize_zero():
    assert_close(orthogonalize(torch.zeros(3, 4), 5), torch.zeros(3, 4), **EXACT)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(4, 10), (10, 4), (1, 6)])
def test_muon_is_that_of_torch(shape, nesterov):
    """To the rounding of torch's bfloat16: two decimal digits of a step, whose weights are below 1."""
    options = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.8, "nesterov": nesterov}
    ours, theirs = random_parameter(*shape), random_parameter(*shape)
    optimizer = MuonWithAdamW([ours], [], **options)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for step in range(4):
        before = theirs.detach().clone()
        ours.grad = theirs.grad = random_parameter(*shape, seed=1 + step).detach()
        optimizer.step()
        reference.step()
        length = 0.02 * 0.2 * max(shape) ** 0.5
        assert (theirs.detach() - before).abs().max() > 0.1 * length
        assert_close(ours.detach(), theirs.detach(), rtol=0, atol=0.03 * (step + 1) * length)


def test_adamw_is_that_of_torch():
    options = {"lr": 0.02, "weight_decay": 0.3, "betas": (0.7, 0.8), "eps": 1e-3}
    ours, theirs = random_parameter(4, 3), random_parameter(4, 3)
    optimizer, reference = MuonWithAdamW([], [ours], **options), torch.optim.AdamW([theirs], **options)
    for step in range(4):
        ours.grad = theirs.grad = random_parameter(4, 3, seed=1 + step).detach()
        optimizer.step()
        reference.step()
    assert_close(ours.detach(), theirs.detach(), **EXACT)


def test_convolutions_are_matrices():
    ours, flat = random_parameter(4, 3, 5), nn.Parameter(random_parameter(4, 3, 5).detach().flatten(1))
    optimizer = MuonWithAdamW([ours, flat], [])
    for step in range(3):
        ours.grad = random_parameter(4, 3, 5, seed=1 + step).detach()
        flat.grad = ours.grad.flatten(1).clone()
        optimizer.step()
    assert_close(ours.detach().flatten(1), flat.detach(), **EXACT)


def test_step_takes_a_closure_and_skips_what_has_no_gradient():
    matrix, vector, idle = random_parameter(3, 3), random_parameter(3), random_parameter(2, 2)
    optimizer = MuonWithAdamW([matrix, idle], [vector], lr=0.1)
    before = [parameter.detach().clone() for parameter in (matrix, vector, idle)]

    def closure():
        optimizer.zero_grad()
        loss = (matrix @ vector).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert not torch.equal(matrix, before[0]) and not torch.equal(vector, before[1])
    assert_close(idle.detach(), before[2], **EXACT)


def test_muon_rejects_vectors():
    with pytest.raises(ValueError, match="`muon_params` must have two dimensions or more"):
        MuonWithAdamW([random_parameter(3)], [])
    with pytest.raises(ValueError, match="[Ll]earning rate"):
        MuonWithAdamW([random_parameter(3, 3)], [], lr=-1.0)


# Which parameter goes where


def names_of_groups(model, **kwargs):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = muon_with_adamw(model, **kwargs).param_groups
    adamw, muon = ({names[parameter] for parameter in group["params"]} for group in groups)
    assert not adamw & muon and len(adamw) + len(muon) == sum(len(group["params"]) for group in groups)
    return adamw, muon


def test_groups_of_convolutions():
    adamw, muon = names_of_groups(tiny_model("conv"))
    assert adamw | muon == {name for name, _ in tiny_model("conv").named_parameters()}
    assert {"embed_tokens.weight", "lm_head.weight", "mean_head.weight", "logvar_head.weight"} < adamw
    assert {"encoder.blocks.0.norm1.weight", "encoder.blocks.0.conv1.bias"} < adamw
    assert {"encoder.blocks.0.skip.weight", "decoder.blocks.2.weight"} < muon
    assert {"decoder.bottom_block.conv1.weight", "decoder.latent_proj.weight"} < muon
    assert names_of_groups(tiny_model("conv"), muon_heads=True)[1] - muon == {
        "lm_head.weight",
        "mean_head.weight",
        "logvar_head.weight",
    }


def test_tied_embeddings_are_embeddings():
    adamw, muon = names_of_groups(tiny_model("chunk_tied"), muon_heads=True)
    assert "embed_tokens.weight" in adamw and "mean_head.weight" in muon


def test_frozen_parameters_are_left_out():
    model = tiny_model("chunk")
    model.decoder.requires_grad_(False)
    adamw, muon = names_of_groups(model)
    assert adamw | muon == {name for name, _ in model.named_parameters() if not name.startswith("decoder.")}


def test_groups_of_other_families():
    adamw, muon = names_of_groups(tiny_autocompressor("llama"))
    assert "embed_summary.weight" in adamw and "lm_head.weight" in adamw
    assert "model.layers.0.mlp.down_proj.weight" in muon and "model.norm.weight" in adamw
    adamw, muon = names_of_groups(tiny_hierarchical("ema_vq"))
    assert {"compressors.0.pooler.queries", "expanders.0.end_head.weight"} < adamw
    assert {"compressors.0.code_proj.weight", "expanders.0.embed_codes.weight"} < muon


def test_output_embeddings_are_a_head_by_any_name():
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    adamw, muon = names_of_groups(BertForMaskedLM(BertConfig(**sizes, tie_word_embeddings=False)))
    assert "cls.predictions.decoder.weight" in adamw
    assert "cls.predictions.transform.dense.weight" in muon


# Saving and resuming


def train_steps(model, optimizer, scheduler, steps):
    lrs = []
    for step in steps:
        ids = random_ids(2, 8, seed=step, vocab_size=model.config.vocab_size)
        model(ids, labels=ids, sample=False).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        lrs.append([group["lr"] for group in optimizer.param_groups])
    return lrs


def make_optimizer(model):
    optimizer = muon_with_adamw(model, lr=0.01, muon_scale=1.0)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, 2, 8)


def test_resumed_steps_are_exact(tmp_path):
    whole = tiny_model("conv")
    expected = train_steps(whole, *make_optimizer(whole), range(8))
    model = tiny_model("conv")
    optimizer, scheduler = make_optimizer(model)
    lrs = train_steps(model, optimizer, scheduler, range(3))
    states = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: value.state_dict() for name, value in states.items()}, tmp_path / "states.pt")
    saved = torch.load(tmp_path / "states.pt", weights_only=True)
    model = tiny_model("conv", seed=1)
    optimizer, scheduler = make_optimizer(model)
    for name, value in {"model": model, "optimizer": optimizer, "scheduler": scheduler}.items():
        value.load_state_dict(saved[name])
    lrs += train_steps(model, optimizer, scheduler, range(3, 8))
    assert lrs == expected and len({tuple(lr) for lr in lrs}) > 5
    assert_close(model.state_dict(), whole.state_dict(), **EXACT)


def run_trainer(folder, resume=False, **kwargs):
    model = tiny_model("conv")
    rows = random_ids(8, 12, vocab_size=model.config.vocab_size)
    args = TrainingArguments(
        folder,
        max_steps=8,
        learning_rate=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        per_device_train_batch_size=2,
        save_steps=3,
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        **kwargs,
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        optimizers=(muon_with_adamw(model, lr=args.learning_rate, weight_decay=0.1), None),
    )
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-3" if resume else None)
    logs = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    return model.state_dict(), [(entry["step"], entry["learning_rate"], entry["loss"]) for entry in logs]


def test_the_trainer_schedules_saves_and_resumes(tmp_path):
    weights, logs = run_trainer(str(tmp_path))
    rates = [rate for _, rate, _ in logs]
    assert rates[:3] == pytest.approx([0.0, 0.005, 0.01]) and rates[3:] == sorted(rates[3:], reverse=True)
    resumed_weights, resumed_logs = run_trainer(str(tmp_path), resume=True)
    assert resumed_logs == logs
    assert_close(resumed_weights, weights, **EXACT)

"""Training continuous text autoencoders with `train.py`, what evaluation measures, and Muon for every family.

Run by torchrun, this file is the worker of `test_two_processes_equal_one`.
"""

import ast
import csv
import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from activation_testing import tiny_base
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_testing import EXACT, random_ids, run_on_two_processes
from test_continuous_text_autoencoder import tiny_model
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close
from train_testing import (
    ROOT,
    common_arguments,
    losses_in,
    metrics_of,
    read_json,
    run_command,
    run_script,
    start_script,
    weights_in,
)
from transformers import AutoModel, AutoTokenizer, HfArgumentParser, TrainingArguments, get_cosine_schedule_with_warmup

import train
from args import ContinuousTextArguments, ModelArguments, OptimArguments
from args import TrainingArguments as SubstepArguments
from auto_compressor import ByteTokenizer, ContinuousTextAutoencoder, ContinuousTextAutoencoderConfig
from auto_compressor.autocompressor.family import add_lora, load_model_and_tokenizer
from auto_compressor.continuous_text_autoencoder import modeling_continuous_text_autoencoder as modeling
from auto_compressor.continuous_text_autoencoder.family import BLOCK_SIZE, SOURCE_OPTIONS, load_continuous_text
from auto_compressor.continuous_text_autoencoder.metrics import (
    NOISE_LEVELS,
    STATISTICS,
    continuous_metrics,
    continuous_statistics,
    hashed_uniform,
    measure_continuous,
)
from auto_compressor.continuous_text_autoencoder.trainer import ContinuousTrainer, SeedProcesses
from auto_compressor.families import MODEL_TYPES, training_family
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.training.muon import MuonWithAdamW, muon_with_adamw


TYPE = ["--model_type", "continuous_text_autoencoder"]
SIZES = ["--embedding_size", 12, "--hidden_size", 8, "--latent_dim", 6]
TINY = {
    "conv": [*TYPE, *SIZES, "--block_size", 16, "--architecture", "conv"],
    "chunk": [*TYPE, *SIZES, "--block_size", 16, "--architecture", "chunk", "--tie_word_embeddings", "true"],
}
OPTIONS = "--token_dropout 0.1 --latent_dropout 0.1 --kl_clip 0.5 --kl_warmup_steps 3 --kl_loss_weight 0.01".split()
architectures = pytest.mark.parametrize("name", TINY)


# What evaluation measures


def random_rows(lengths, seed=0, vocab_size=60):
    """Right-padded tokens and their mask."""
    ids = random_ids(len(lengths), max(lengths), seed=seed, vocab_size=vocab_size)
    return ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


@torch.no_grad()
def reproducing_model():
    """A chunk model of two tokens, each of which is one number of the latent: it makes no errors without noise."""
    sizes = {"vocab_size": 60, "embedding_size": 2, "hidden_size": 4, "latent_dim": 4, "chunk_size": 2}
    model = ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(architecture="chunk", **sizes)).double().eval()
    angles = torch.arange(60) * 2 * torch.pi / 60
    circle = torch.stack([angles.cos(), angles.sin()], dim=1).double()

    class Encoder(torch.nn.Module):
        def forward(self, embeddings, mask):
            return embeddings.unflatten(1, (-1, 2)).flatten(2)

    class Decoder(torch.nn.Module):
        def forward(self, latents, mask):
            return latents.unflatten(2, (2, 2)).flatten(1, 2)

    model.encoder, model.decoder, model.mean_head = Encoder(), Decoder(), torch.nn.Identity()
    model.embed_tokens.weight.copy_(circle)
    model.lm_head.weight.copy_(circle)
    model.lm_head.bias.zero_()
    model.logvar_head.weight.zero_()
    model.logvar_head.bias.fill_(-2.0)
    return model


@torch.no_grad()
@architectures
def test_metrics_by_hand(name):
    """Row by row, without padding."""
    model, (ids, mask) = tiny_model(name, dtype=torch.float64, kl_clip=0.3), random_rows([13, 5, 1, 8])
    found = measure_continuous(model, [(ids, mask)])
    rows = [row[keep.bool()][None] for row, keep in zip(ids, mask, strict=True)]
    outputs = [model(row, labels=row, sample=False) for row in rows]
    right = [(output.logits.argmax(dim=-1) == row).flatten() for output, row in zip(outputs, rows, strict=True)]
    nats = [output.losses["reconstruction"] * row.numel() for output, row in zip(outputs, rows, strict=True)]
    means = torch.cat([output.mean[0] for output in outputs])
    logvars = torch.cat([output.logvar[0] for output in outputs])
    divergence = kl_divergence(Normal(means, (logvars / 2).exp()), Normal(torch.zeros(()).double(), 1.0))
    assert found["tokens"] == 27 and found["tokens_per_latent"] == 27 / len(means)
    assert found["token_accuracy"] == pytest.approx(torch.cat(right).double().mean().item())
    assert found["sequence_accuracy"] == sum(bool(row.all()) for row in right) / 4
    assert found["reconstruction_loss"] == pytest.approx(sum(nats).item() / 27)
    assert found["bits_per_latent"] == pytest.approx(divergence.sum(dim=1).mean().item() / math.log(2))
    assert found["kl_loss"] == pytest.approx(divergence.clamp(min=0.3).mean().item())
    losses = model(ids, mask, labels=ids, sample=False).losses
    assert found["reconstruction_loss"] == pytest.approx(losses["reconstruction"].item())
    assert found["kl_loss"] == pytest.approx(losses["kl"].item())


@torch.no_grad()
@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), size=st.integers(1, 5), left=st.booleans())
def test_rows_do_not_depend_on_their_batch(lengths, size, left):
    """Nor on padding, the controls among them."""
    model, (ids, mask) = tiny_model("chunk", dtype=torch.float64), random_rows(lengths)
    model.latent_norm.variance.fill_(4.0)
    whole = continuous_statistics(model, ids, mask)
    padded = [F.pad(rows, (5, 0) if left else (0, 5), value=0) for rows in (ids, mask)]
    close = {"rtol": 1e-6, "atol": 1e-9}  # cross-entropies are those of float32
    assert_close(continuous_statistics(model, *padded), whole, **close)
    parts = [continuous_statistics(model, *part) for part in zip(ids.split(size), mask.split(size), strict=True)]
    assert_close(torch.cat(parts), whole, **close)
    alone = [continuous_statistics(model, row[None, :length]) for row, length in zip(ids, lengths, strict=True)]
    assert_close(torch.cat(alone), whole, **close)


@torch.no_grad()
def test_a_model_without_errors():
    model, (ids, mask) = reproducing_model(), random_rows([200, 150])
    found = measure_continuous(model, [(ids, mask)])
    assert found["token_accuracy"] == found["sequence_accuracy"] == found["random_token_accuracy"] == 1.0
    with pytest.raises(ValueError, match="one token of text"):
        continuous_metrics(torch.zeros(2, len(STATISTICS)))


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_noise_has_its_size(scale):
    """On a circle of 60 tokens, the share of those that noise moves by less than half a step."""
    model, (ids, mask) = reproducing_model(), random_rows([2000] * 4)
    model.latent_norm.variance.fill_(scale**2)
    found = measure_continuous(model, [(ids, mask)])
    for level in NOISE_LEVELS:
        noisy = torch.polar(torch.ones(200_000), torch.zeros(200_000)) + level * scale * torch.view_as_complex(
            torch.randn(200_000, 2)
        )
        expected = (noisy.angle().abs() < torch.pi / 60).double().mean().item()
        assert 0.05 < expected < 1
        assert found[f"noise_{level}_token_accuracy"] == pytest.approx(expected, abs=0.02)


@torch.no_grad()
def test_a_model_that_knows_some_tokens_only():
    """The control draws from the whole vocabulary, however few tokens the text has."""
    model, (ids, mask) = reproducing_model(), random_rows([2000] * 2, vocab_size=15)
    model.embed_tokens.weight[15:] = model.embed_tokens.weight[0]
    found = measure_continuous(model, [(ids, mask)])
    assert found["token_accuracy"] == 1.0 and found["random_token_accuracy"] == pytest.approx(0.25, abs=0.03)


def test_hashed_numbers_are_uniform_and_independent():
    ids, mask = torch.zeros(300, 8, dtype=torch.long), torch.ones(300, 8)
    ids[:, 0] = torch.arange(300)  # rows that differ by one token
    drawn = hashed_uniform(ids, mask.bool(), (20, 10), seed=0)
    assert drawn.shape == (300, 20, 10) and 0 < drawn.min() and drawn.max() < 1
    assert drawn.unique().numel() == drawn.numel()
    counts = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert_close(counts, torch.full_like(counts, 0.05), rtol=0, atol=0.005)
    correlations = torch.corrcoef(drawn.flatten(1).T) - torch.eye(200).double()
    assert correlations.abs().max() < 0.35
    other = hashed_uniform(ids, mask.bool(), (20, 10), seed=1)
    assert abs(torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1]) < 0.02
    assert_close(hashed_uniform(ids, mask.bool(), (7, 10), seed=0), drawn[:, :7], **EXACT)
    swapped = ids[:, [1, 0, *range(2, 8)]]  # the order of tokens counts
    assert (hashed_uniform(swapped, mask.bool(), (20, 10), seed=0)[1:] != drawn[1:]).all()


# Training


@pytest.mark.parametrize("options", [[], OPTIONS], ids=["published", "options"])
@architectures
def test_train_evaluate_and_reload(name, options, main):
    arguments = ["--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1]
    folder = main(*TINY[name], *options, *arguments, "--do_train", "--do_eval")
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    assert type(model) is ContinuousTextAutoencoder and model.config.architecture == name
    assert model.config.kl_clip == (0.5 if options or name == "chunk" else 0.0)
    assert model.config.kl_warmup_steps == (3 if options else 0)
    assert model.latent_norm.num_batches == 2
    text = "In the beginning"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    assert model.reconstruct(text) == tokenizer.decode(model.reconstruct(ids)[0])
    with (folder / "evaluation.csv").open() as file:
        rows = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert {f"eval_validation_{metric}": value for metric, value in rows.items()} == metrics_of(folder)
    held_out = tokenizer(BUNDLED_VALIDATION_TEXT.read_text(), add_special_tokens=False, verbose=False).input_ids
    expected = measure_continuous(model, [(torch.tensor(held_out[:64]).view(4, 16), None)])
    assert rows == pytest.approx(expected, rel=1e-4)
    names = {"loss", "reconstruction_loss", "kl_loss", "step"}
    assert [set(losses) for losses in losses_in(folder)] == [names] * 2
    history = read_json(folder / "trainer_state.json")["log_history"]
    assert sum("eval_validation_random_token_accuracy" in logs for logs in history) == 2


def test_reported_losses_are_the_models(main):
    """The mean over all tokens, the padded ones left out: a new model knows nothing, and sees a logit at most."""
    folder = main(*TINY["chunk"], "--kl_loss_weight", 0.5, "--do_train", "--max_steps", 1)
    (losses,) = losses_in(folder)
    assert losses["loss"] == pytest.approx(losses["reconstruction_loss"] + 0.5 * losses["kl_loss"], rel=1e-4)
    assert losses["reconstruction_loss"] == pytest.approx(math.log(2048), rel=0.1)


def test_padding_counts_for_nothing(main, tmp_path):
    """Rows of many lengths give the losses and the metrics of their tokens."""
    rows = [random_ids(1, length, seed=length, vocab_size=2048)[0].tolist() for length in (16, 3, 9, 1)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    data = ["--preprocessed_train_datasets", path, "--preprocessed_validation_datasets", path]
    arguments = [*TINY["conv"], *data, "--do_train", "--do_eval", "--max_steps", 1, "--learning_rate", 0]
    arguments += ["--latent_dropout", 0, "--per_device_train_batch_size", 4, "--per_device_eval_batch_size", 3]
    folder = main(*arguments)
    model = AutoModel.from_pretrained(folder).eval()
    found = {name.removeprefix("eval_rows_"): value for name, value in metrics_of(folder).items()}
    assert found == pytest.approx(measure_continuous(model, [(torch.tensor([row]), None) for row in rows]), rel=1e-4)
    assert found["tokens"] == sum(map(len, rows))
    torch.manual_seed(0)
    sampled = [model(torch.tensor([row]), labels=torch.tensor([row]), sample=True) for row in rows * 20]
    nats = sum(output.losses["reconstruction"].item() * output.logits.shape[1] for output in sampled)
    (losses,) = losses_in(folder)
    assert losses["reconstruction_loss"] == pytest.approx(nats / 20 / found["tokens"], rel=0.05)
    assert losses["kl_loss"] == pytest.approx(found["kl_loss"], rel=1e-4)


def test_accumulated_batches_are_one(main, tmp_path, monkeypatch):
    monkeypatch.setattr(modeling, "sample_normal", fixed_sample)
    arguments = [*TINY["conv"], "--do_train", "--max_steps", 2, "--optim", "sgd", "--kl_loss_weight", 0.1]
    whole = main(*arguments, "--per_device_train_batch_size", 4, output_dir=tmp_path / "whole")
    parts = main(*arguments, "--gradient_accumulation_steps", 2, output_dir=tmp_path / "parts")
    whole_weights, parts_weights = without_statistics(weights_in(whole)), without_statistics(weights_in(parts))
    assert_close(parts_weights, whole_weights, rtol=1e-5, atol=1e-6)
    for accumulated, same in zip(losses_in(parts), losses_in(whole), strict=True):
        assert accumulated == pytest.approx(same, rel=1e-4)


def without_statistics(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith("latent_norm")}


def learning_rates(folder):
    history = read_json(folder / "trainer_state.json")["log_history"]
    return [logs["learning_rate"] for logs in history if "learning_rate" in logs]


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@architectures
def test_resumed_equals_uninterrupted(name, optim, main, tmp_path):
    """From what a killed run leaves: weights, losses, noise and the learning rate, in an epoch and in a later one."""
    arguments = [*TINY[name], *OPTIONS, "--optim_family", optim, "--do_train", "--max_steps", 7, "--save_steps", 2]
    arguments += ["--max_train_samples", 8, "--warmup_steps", 2, "--resume_from_checkpoint", "true"]
    arguments += ["--eval_strategy", "steps", "--eval_steps", 3]
    whole = main(*arguments, output_dir=tmp_path / "whole")
    rates = learning_rates(whole)
    factors = get_cosine_schedule_with_warmup(torch.optim.SGD([torch.zeros(1)]), 2, 7).lr_lambdas[0]
    assert rates == pytest.approx([1e-2 * factors(step) for step in range(7)])
    for step in (2, 6):
        killed = tmp_path / f"killed_{step}"
        shutil.copytree(whole / f"checkpoint-{step}", killed / f"checkpoint-{step}")
        resumed = main(*arguments, output_dir=killed)
        assert_close(weights_in(resumed), weights_in(whole), rtol=0, atol=0)
        assert losses_in(resumed) == losses_in(whole) and learning_rates(resumed) == rates


def test_streaming(main, tmp_path):
    """The same stream twice; its end is unknown."""
    path, text = tmp_path / "text.jsonl", BUNDLED_TRAIN_TEXT.read_text()
    documents = [text[start : start + 500] for start in range(0, 50_000, 500)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    arguments = [*TINY["chunk"], "--train_file", path, "--streaming", "--do_train", "--max_steps", 3]
    folder = main(*arguments, "--max_train_samples", 64)
    again = main(*arguments, "--max_train_samples", 64, output_dir=tmp_path / "again")
    assert len(losses_in(folder)) == 3 and losses_in(again) == losses_in(folder)
    with pytest.raises(SystemExit, match="max_steps has to be specified"):
        main(*arguments[:-1], -1, output_dir=tmp_path / "endless")


def test_bf16(main):
    folder = main(*TINY["conv"], "--bf16", "--do_train", "--do_eval", "--max_steps", 2)
    assert {tensor.dtype for tensor in weights_in(folder).values()} == {torch.float32}
    assert 0 < metrics_of(folder)["eval_validation_reconstruction_loss"] < 20


def test_training_goes_on_from_a_model(main, tmp_path):
    first = main(*TINY["chunk"], "--do_train", "--max_steps", 1, output_dir=tmp_path / "first")
    arguments = [*TYPE, "--model_name_or_path", first, "--block_size", 16, "--do_train", "--max_steps", 1]
    second = main(*arguments, "--kl_clip", 0.25, "--learning_rate", 0, output_dir=tmp_path / "second")
    assert_close(*map(without_statistics, (weights_in(second), weights_in(first))), rtol=0, atol=0)
    config = AutoModel.from_pretrained(second).config
    assert (config.hidden_size, config.kl_clip, config.tie_word_embeddings) == (8, 0.25, True)
    with pytest.raises(SystemExit, match="cannot be loaded"):
        main(*arguments, "--hidden_size", 16)


def test_the_tokenizer_must_be_that_of_the_model(main, tmp_path):
    first = main(*TINY["chunk"], "--do_train", "--max_steps", 1, output_dir=tmp_path / "first")
    ByteTokenizer().save_pretrained(tmp_path / "bytes")
    arguments = [*TYPE, "--model_name_or_path", first, "--do_eval"]
    with pytest.raises(SystemExit, match="`tokenizer` must be the one .* of 2048 tokens .* it has 259"):
        main(*arguments, "--tokenizer_name", tmp_path / "bytes")
    (first / "tokenizer.json").unlink()
    (first / "tokenizer_config.json").unlink()
    with pytest.raises(SystemExit, match="no tokenizer in .*first': give --tokenizer_name"):
        main(*arguments)
    main(*arguments, "--tokenizer_name", BUNDLED_TOKENIZER, "--block_size", 16)


def test_a_new_model_is_made_for_its_tokenizer(main, tmp_path):
    ByteTokenizer().save_pretrained(tmp_path / "bytes")
    folder = main(*TINY["conv"], "--tokenizer_name", tmp_path / "bytes", "--do_train", "--max_steps", 1)
    assert AutoModel.from_pretrained(folder).config.vocab_size == 259
    assert type(AutoTokenizer.from_pretrained(folder)) is ByteTokenizer


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--architecture transformer", "`architecture` must be one of conv, chunk, got 'transformer'"),
        ("--hidden_size 0", "`hidden_size` must be 1 or more"),
        ("--tie_word_embeddings true", "`tie_word_embeddings` with `architecture` conv needs"),
        ("--latent_dropout 1", "`latent_dropout` must be at least 0 and below 1"),
        ("--block_size 0", "block_size must be 1 or more"),
        ("--train_file nowhere.txt", "--train_file 'nowhere.txt' is not a file"),
        ("--model_name_or_path nowhere", "no tokenizer in 'nowhere'"),
        (
            f"--model_name_or_path nowhere --tokenizer_name {BUNDLED_TOKENIZER}",
            "--model_name_or_path 'nowhere' cannot",
        ),
        ("--optim_family sgd", "`optim_family` must be adamw or muon, got 'sgd'"),
        ("--optim_family muon --muon_scale 0", "`muon_scale` must be above 0"),
        ("--segment_lengths 16 16", "segment_lengths"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, main):
    with pytest.raises((SystemExit, ValueError), match=message):  # the parser raises a ValueError itself
        main(*TINY["conv"], "--do_train", "--max_steps", 1, *arguments.split())


# Processes


def fixed_sample(mean, logvar):
    """What two processes cannot draw alike, made the same for all."""
    return mean + 0.3 * (logvar / 2).exp()


def two_process_arguments():
    arguments = [*TINY["conv"], "--do_train", "--do_eval", "--max_steps", 4, "--optim", "sgd", "--kl_loss_weight", 0.1]
    return [*arguments, "--kl_warmup_steps", 3, "--max_eval_samples", 7, "--save_steps", 4]


def test_two_processes_equal_one(cache_dir, main, tmp_path, monkeypatch):
    sizes = ["--per_device_eval_batch_size", 1]
    arguments = [*common_arguments(cache_dir, tmp_path / "two"), *two_process_arguments(), *sizes]
    (tmp_path / "arguments.json").write_text(json.dumps(list(map(str, arguments))))
    run_on_two_processes(__file__, tmp_path)
    monkeypatch.setattr(modeling, "sample_normal", fixed_sample)
    sizes = ["--per_device_eval_batch_size", 2, "--per_device_train_batch_size", 4]
    one = main(*two_process_arguments(), *sizes, output_dir=tmp_path / "one")
    assert_close(weights_in(tmp_path / "two"), weights_in(one), rtol=1e-5, atol=1e-5)
    assert_close(metrics_of(tmp_path / "two"), metrics_of(one), rtol=1e-5, atol=1e-5)
    for two, same in zip(losses_in(tmp_path / "two"), losses_in(one), strict=True):
        assert two == pytest.approx(same, rel=1e-3)
    states = [torch.load(tmp_path / f"two/checkpoint-4/rng_state_{rank}.pth", weights_only=False) for rank in (0, 1)]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])  # each has noise of its own


def test_processes_are_seeded_apart():
    drawn = []
    for rank in (0, 1, 0):
        SeedProcesses().on_train_begin(SimpleNamespace(seed=3, process_index=rank), None, None)
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


# Muon for every family

SMALL = {
    "autocompressor": "--config_name tiny --block_size 64 --segment_lengths 16 16 --training_substeps 2"
    " --summary_length 4",
    "hierarchical_autoencoder": "--hidden_size 16 --intermediate_size 24 --num_hidden_layers 1 --num_expander_layers 1"
    " --codebook_size 32 --block_size 32",
    "adaptive_byte": "--hidden_size 8 --sequence_length 32 --byte_entropy_threshold 12",
    "gru_byte": "--hidden_size 8 --sequence_length 32",
    "continuous_text_autoencoder": "--embedding_size 12 --hidden_size 8 --latent_dim 6 --block_size 16",
    "activation_compressor": "--freeze_base false --max_length 64 --continuation_length 16 --num_sinks 2"
    " --recent_window 4 --compression_ratio 3",
}


@pytest.fixture
def base_of(tmp_path):
    """The arguments that name a base model, for the families that need one."""

    def base_of(family):
        if family != "activation_compressor":
            return []
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
        for part in (tokenizer, tiny_base("llama", vocab_size=len(tokenizer))):
            part.save_pretrained(tmp_path / "base")
        return ["--model_name_or_path", tmp_path / "base"]

    return base_of


def test_every_family_is_here():
    assert set(SMALL) == set(MODEL_TYPES)
    assert all(issubclass(training_family(name).training_arguments, OptimArguments) for name in MODEL_TYPES)


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_muon_of_every_family(family, base_of, main, tmp_path):
    arguments = ["--model_type", family, *base_of(family), *SMALL[family].split()]
    arguments += ["--do_train", "--max_steps", 3, "--save_steps", 2]
    arguments += ["--optim_family", "muon", "--resume_from_checkpoint", "true", "--lr_scheduler_type", "cosine"]
    whole = main(*arguments, output_dir=tmp_path / "whole")
    state = torch.load(whole / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert any("momentum_buffer" in entry for entry in state["state"].values())
    assert any("exp_avg_sq" in entry for entry in state["state"].values())
    shutil.copytree(whole / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    resumed = main(*arguments, output_dir=tmp_path / "killed")
    assert_close(weights_in(resumed), weights_in(whole), rtol=0, atol=0)
    assert learning_rates(resumed) == learning_rates(whole)
    assert losses_in(resumed) == losses_in(whole)


def trainer_of(tmp_path, args_class=OptimArguments, model=None, **fields):
    args = args_class(output_dir=str(tmp_path), use_cpu=True, report_to="none", **fields)
    return ContinuousTrainer(model or tiny_model("conv"), args)


def test_the_optimizer_has_the_arguments(tmp_path):
    fields = {"learning_rate": 0.03, "weight_decay": 0.2, "adam_beta1": 0.7, "adam_beta2": 0.8, "adam_epsilon": 1e-4}
    trainer = trainer_of(tmp_path, optim_family="muon", muon_scale=1.0, muon_heads=True, **fields)
    optimizer, model = trainer.create_optimizer(), trainer.model
    assert type(optimizer) is MuonWithAdamW and trainer.create_optimizer() is optimizer
    expected = muon_with_adamw(
        model, True, lr=0.03, weight_decay=0.2, muon_scale=1.0, betas=(0.7, 0.8), eps=1e-4
    ).state_dict()
    assert optimizer.state_dict() == expected
    default = trainer_of(tmp_path, optim_family="muon", model=model).create_optimizer()
    assert default.param_groups[1]["muon_scale"] == 0.2
    heads = {id(model.lm_head.weight), id(model.mean_head.weight), id(model.logvar_head.weight)}
    assert heads <= {id(parameter) for parameter in optimizer.param_groups[1]["params"]}
    assert not heads & {id(parameter) for parameter in default.param_groups[1]["params"]}


@pytest.mark.parametrize("args_class", [OptimArguments, TrainingArguments])
def test_adamw_is_the_default(args_class, tmp_path):
    assert type(trainer_of(tmp_path, args_class).create_optimizer()) is torch.optim.AdamW
    sgd = trainer_of(tmp_path, args_class, optim="sgd")
    assert type(sgd.create_optimizer()) is torch.optim.SGD


def test_published_scale(main, tmp_path):
    """A matrix moves by lr x sqrt(max(rows, columns)) along the singular vectors of its gradient."""
    arguments = [*TINY["conv"], "--do_train", "--optim_family", "muon", "--weight_decay", 0, "--warmup_steps", 0]
    arguments += ["--muon_scale", 1, "--max_steps"]
    start = main(*arguments, 1, "--learning_rate", 0, output_dir=tmp_path / "start")
    moved = main(*arguments, 1, output_dir=tmp_path / "moved")
    name = "decoder.bottom_block.conv1.weight"
    step = (weights_in(moved)[name] - weights_in(start)[name]).flatten(1)
    values = torch.linalg.svdvals(step) / (1e-2 * max(step.shape) ** 0.5)
    assert values[0] < 1.3 and values[5] > 0.6


def test_muon_trains_adapters(tmp_path):
    """Adapters by Muon; what is trained of embeddings and heads, and of nothing else, by AdamW."""
    model_args = ModelArguments(config_name="tiny", lora=True)
    training_args = SubstepArguments(output_dir=str(tmp_path), use_cpu=True, compression_max_len=3)
    model, _ = load_model_and_tokenizer(model_args, training_args)
    model = add_lora(model, model_args, training_args)
    optimizer = muon_with_adamw(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    adamw, muon = ({names[parameter] for parameter in group["params"]} for group in optimizer.param_groups)
    assert muon and all("lora_" in name for name in muon)
    assert not any("lora_" in name for name in adamw)
    assert any("stop_head.modules_to_save.default.weight" in name for name in adamw)
    assert any("trainable_tokens" in name for name in adamw)
    assert len(adamw | muon) == sum(parameter.requires_grad for parameter in model.parameters())


# Arguments


def test_fields_of_the_config():
    """Every field that training may set is an argument, None if it is not given."""
    flags = ["--architecture", "chunk", "--chunk_size", "8", "--num_chunk_layers", "2", "--num_residual_blocks", "1"]
    flags += ["--kl_clip", "0", "--kl_warmup_steps", "9", "--tie_word_embeddings", "true", "--token_dropout", "0.2"]
    flags += ["--kl_loss_weight", "0"]
    (arguments,) = HfArgumentParser(ContinuousTextArguments).parse_args_into_dataclasses(flags)
    config = load_continuous_text(arguments)[0].config
    assert (config.architecture, config.chunk_size, config.num_chunk_layers) == ("chunk", 8, 2)
    assert (config.num_residual_blocks, config.kl_clip, config.kl_warmup_steps) == ([1], 0.0, 9)
    assert config.tie_word_embeddings and (config.token_dropout, config.kl_loss_weight) == (0.2, 0.0)
    assert config.vocab_size == 2048
    names = {name for name in vars(ContinuousTextArguments()) if name not in SOURCE_OPTIONS}
    assert names == set(ContinuousTextAutoencoderConfig.__annotations__) - {
        "model_type",
        "keys_to_ignore_at_inference",
        "vocab_size",
        "rms_norm_eps",
        "initializer_range",
    }


def test_published_architecture():
    """`conv` is as published where nothing else is said; that of a new model is `chunk`."""
    parser = HfArgumentParser(training_family("continuous_text_autoencoder").argument_groups)
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(["--architecture", "conv"])
    model, tokenizer = load_continuous_text(model_args)
    expected = ContinuousTextAutoencoderConfig(vocab_size=2048, architectures=model.config.architectures)
    assert model.config.to_diff_dict() == expected.to_diff_dict() and len(tokenizer) == 2048
    assert not data_args.add_special_tokens and BLOCK_SIZE == 128
    assert (training_args.lr_scheduler_type, training_args.warmup_steps) == ("cosine", 100)
    assert (training_args.adam_beta1, training_args.adam_beta2, training_args.optim_family) == (0.9, 0.95, "adamw")
    (new,) = HfArgumentParser(ContinuousTextArguments).parse_args_into_dataclasses([])
    assert load_continuous_text(new)[0].config.architecture == "chunk"


# Scripts


def script_arguments(tmp_path, **variables):
    """The arguments that the script starts train.py with, and what it says."""
    settings = {"OUT": str(tmp_path / "out"), "NUM_GPUS": "0"} | variables
    done, started = start_script("train_continuous.sh", "--token_dropout", "0.1", **settings)
    (said,), command = done.stdout.splitlines(), " ".join(started)
    assert command.split()[:2] == ["train.py", "--use_cpu"] and command.endswith(" --token_dropout 0.1")
    parser = HfArgumentParser(training_family("continuous_text_autoencoder").argument_groups)
    return said, *parser.parse_args_into_dataclasses(command.replace(" ".join(TYPE), "").split()[1:])


def test_recipe_of_the_script(tmp_path):
    said, model_args, _, training_args = script_arguments(tmp_path)
    assert said.startswith("Run cont_chunk4_z64_d256_adamw_lr2e-3_bsz16x128 -> ")
    config = load_continuous_text(model_args)[0].config
    assert (config.architecture, config.embedding_size, config.hidden_size) == ("chunk", 128, 256)
    assert (config.latent_dim, config.kl_clip, config.tie_word_embeddings) == (64, 0.5, True)
    assert (training_args.per_device_train_batch_size, training_args.max_steps) == (16, 800)
    assert (training_args.learning_rate, training_args.weight_decay) == (2e-3, 0.1)


def test_published_setting_of_the_script(tmp_path):
    """As it stands at the head of the script."""
    head = (ROOT / "run" / "train_continuous.sh").read_text()
    line = head.split("# The published model and training are\n")[1].split("bash run")[0].replace("#", "")
    published = dict(setting.split("=") for setting in line.replace("\\", "").split())
    said, model_args, data_args, training_args = script_arguments(tmp_path, **published)
    assert "cont_convr2-2_z4_d96_muon_lr1e-4_bsz48x128" in said
    config = load_continuous_text(model_args)[0].config
    expected = ContinuousTextAutoencoderConfig(vocab_size=2048, latent_dim=4, token_dropout=0.1)
    assert config.to_diff_dict() | {"architectures": None} == expected.to_diff_dict() | {"architectures": None}
    assert (training_args.optim_family, training_args.muon_scale) == ("muon", 1.0)
    assert (training_args.per_device_train_batch_size, training_args.learning_rate) == (48, 1e-4)
    assert (training_args.lr_scheduler_type, training_args.warmup_steps, data_args.block_size) == ("cosine", 100, 128)


def test_run_script(cache_dir, tmp_path):
    settings = {"OUT": str(tmp_path / "out"), "STEPS": "2", "NUM_GPUS": "0", "EMBEDDING": "8", "HIDDEN": "16"}
    settings |= {"BLOCK": "32", "REPORT": "tensorboard", "CHUNK": "8"}
    small = ["--max_train_samples", 32, "--max_eval_samples", 2, "--cache_dir", cache_dir, "--logging_steps", 1]
    done = run_script("train_continuous.sh", *small, **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    assert read_json(tmp_path / "out" / "config.json")["chunk_size"] == 8
    assert "random_token_accuracy" in done.stdout
    events = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("events.out.tfevents*"))
    for tag in (b"train/reconstruction_loss", b"train/kl_loss", b"eval/validation_token_accuracy"):
        assert tag in events
    refused = run_command("bash", "run/train_continuous.sh", **settings | {"NUM_GPUS": "3"})
    assert refused.returncode == 1 and "BATCH=16 must be a multiple of the GPUs, 3." in refused.stderr


def test_runs_of_the_benchmark():
    """Their variables are those of the script, and make the models that their names say."""
    tree = ast.parse((ROOT / "benchmarks" / "continuous.py").read_text())
    (runs,) = [node.value for node in tree.body if ast.unparse(node).startswith("RUNS =")]
    script = (ROOT / "run" / "train_continuous.sh").read_text()
    runs = ast.literal_eval(runs)
    assert {"ratio 4, latent 64"} < set(runs)
    for name, variables in runs.items():
        assert all(f"\n{variable}=${{{variable}" in script for variable in variables)
        ratio, latent = (part.split()[-1] for part in name.removesuffix(", conv").split(", "))
        if "conv" in name:
            assert variables["ARCHITECTURE"] == "conv" and 2 ** len(variables["BLOCKS"].split()) == int(ratio)
        else:
            assert variables.get("CHUNK", "4") == ratio
        assert variables.get("LATENT", "64") == latent


if __name__ == "__main__":
    torch.set_num_threads(1)
    modeling.sample_normal = fixed_sample
    sys.argv = ["train.py", *json.loads((Path(sys.argv[1]) / "arguments.json").read_text())]
    train.main()


def test_a_missing_tracker_ends_in_one_line(main, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find_spec(name))
    arguments = ["--model_type", "continuous_text_autoencoder", "--do_train", "--max_steps", 1]
    with pytest.raises(SystemExit, match='--report_to mlflow needs mlflow: pip install "auto-compressor'):
        main(*arguments, "--report_to", "mlflow")

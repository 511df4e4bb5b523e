"""Training activation compressors with `train.py`: what each flag does, and what is saved and resumed."""

import csv
import shutil

import pytest
import torch
from activation_testing import tiny_base
from torch import nn
from torch.testing import assert_close
from train_testing import (
    common_arguments,
    environment,
    losses_in,
    metrics_of,
    read_json,
    run_command,
    run_program,
    run_script,
    weights_in,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from args import ActivationArguments, DataTrainingArguments
from auto_compressor import ActivationCompressor, ActivationCompressorConfig
from auto_compressor.activation_compressor.family import load_compressor
from auto_compressor.activation_compressor.metrics import activation_metrics, continuation_statistics
from auto_compressor.activation_compressor.trainer import CompressorWithBase
from auto_compressor.autocompressor.losses import shift_labels_left
from auto_compressor.cache_names import as_cache
from auto_compressor.families import training_family
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from data import load_datasets


SIZES = "--max_length 64 --continuation_length 16 --num_sinks 2 --recent_window 4 --observation_window 5".split()
SIZES += ["--compression_ratio", "3"]
ONE_STEP = ["--do_train", "--max_steps", "1"]
LOSSES = {"loss", "lm_loss", "distillation_loss", "importance_loss", "contrastive_loss", "step"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of tiny base models with the bundled tokenizer."""
    tokenizer, folders = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER), {}
    for name in ("llama", "gpt2", "opt"):
        folders[name] = tmp_path_factory.mktemp(name)
        tiny_base(name, vocab_size=len(tokenizer)).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def train_llama(bases, main):
    def train_llama(*arguments, **kwargs):
        return main(
            *("--model_type", "activation_compressor", "--model_name_or_path", bases["llama"]),
            *(*SIZES, *arguments),
            **kwargs,
        )

    return train_llama


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_train_evaluate_and_reload(name, bases, main):
    base_files = {path.name: path.read_bytes() for path in bases[name].iterdir()}
    arguments = ["--model_type", "activation_compressor", "--model_name", bases[name], *SIZES]
    folder = main(*arguments, "--do_train", "--do_eval", "--max_steps", 2)
    compressor, base = AutoModel.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(bases[name])
    assert type(compressor) is ActivationCompressor and compressor.config.compression_ratio == 3
    compressor.check_identity(base)
    assert any(tensor.abs().max() > 0 for key, tensor in weights_in(folder).items() if "importance" in key)
    assert [set(losses) for losses in losses_in(folder)] == [LOSSES] * 2
    with (folder / "evaluation.csv").open() as file:
        rows = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert {f"eval_validation_{metric}": value for metric, value in rows.items()} == metrics_of(folder)
    # The base stays as it is, and is not in the checkpoint.
    assert {path.name: path.read_bytes() for path in bases[name].iterdir()} == base_files
    assert not (folder / "base").exists() and sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 2e5


@pytest.mark.parametrize("segment_length", [None, 12])
def test_metrics_of_the_report(segment_length, bases, train_llama):
    """They are those of the saved compressor, row by row."""
    segments = [] if segment_length is None else ["--segment_length", segment_length]
    folder = train_llama("--do_train", "--do_eval", "--max_steps", 1, "--per_device_eval_batch_size", 3, *segments)
    compressor = ActivationCompressor.from_pretrained(folder).eval()
    base = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    parser = HfArgumentParser(DataTrainingArguments)
    (data_args,) = parser.parse_args_into_dataclasses(["--max_eval_samples", "4"])
    (validation,) = load_datasets(data_args, AutoTokenizer.from_pretrained(bases["llama"]), 64)[1].values()
    statistics = []
    for row in validation.with_format("torch")["input_ids"]:
        ids = row[None].long()
        cache = compressor.compress(base, ids[:, :48], segment_length=segment_length)
        with compressor.attach(base), torch.no_grad():
            logits = base(ids[:, 48:], **as_cache(cache)).logits
        targets = shift_labels_left(ids[:, 48:])
        statistics.append(continuation_statistics(logits, base(ids).logits[:, 48:], targets))
    expected = activation_metrics(torch.cat(statistics))
    assert metrics_of(folder) == {f"eval_validation_{key}": pytest.approx(value) for key, value in expected.items()}
    assert expected["kl"] > 1e-4


def test_reported_losses_are_weighted(train_llama):
    (losses,) = losses_in(
        train_llama(*ONE_STEP, "--distillation_weight", 2, "--importance_weight", 3, "--contrastive_weight", 0.5)
    )
    expected = losses["lm_loss"] + 2 * losses["distillation_loss"] + 3 * losses["importance_loss"]
    assert losses["loss"] == pytest.approx(expected + 0.5 * losses["contrastive_loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["distillation", "importance", "contrastive"])
def test_a_weight_of_0_takes_the_loss_away(name, train_llama):
    (losses,) = losses_in(train_llama(*ONE_STEP, f"--{name}_weight", 0))
    assert set(losses) == LOSSES - {f"{name}_loss"}


@pytest.mark.parametrize(
    "arguments, changed",
    [
        ("--compression_layers 1", {"compression_layers": [1]}),
        ("--layer_budgets 1 2", {"layer_budgets": [1.0, 2.0]}),
        ("--no_use_residuals", {"use_residuals": False}),
        ("--residual_int8", {"residual_int8": True}),
        ("--residual_fraction 0.3", {"residual_fraction": 0.3}),
        ("--residual_importance 1", {"residual_importance": 1.0}),
        ("--no_adaptive_threshold", {"adaptive_threshold": False}),
        ("--similarity_threshold 0.1", {"similarity_threshold": 0.1}),
        ("--similarity_threshold 0.1 --no_adaptive_threshold", {}),
        ("--contrastive_temperature 0.5", {"contrastive_temperature": 0.5}),
        ("--num_slots 20", {"num_slots": 20}),
        ("--segment_length 20", {}),
        ("--max_length 60", {}),
        ("--continuation_length 20", {}),
        ("--observation_window 9", {"observation_window": 9}),
        ("--recent_window 8", {"recent_window": 8}),
        ("--num_sinks 4", {"num_sinks": 4}),
    ],
)
def test_every_flag_has_an_effect(arguments, changed, bases):
    """On what a step of training gives: a loss, the gradient of a parameter, or a threshold."""

    def step(*arguments):
        parser = HfArgumentParser((ActivationArguments, DataTrainingArguments))
        given = ["--model_name", str(bases["llama"]), *SIZES, *arguments]
        model_args, data_args = parser.parse_args_into_dataclasses(given)
        base = AutoModelForCausalLM.from_pretrained(bases["llama"])
        compressor = load_compressor(model_args, base)
        lengths = (model_args.continuation_length, model_args.segment_length)
        ids = torch.randint(2048, (2, data_args.block_size), generator=torch.Generator().manual_seed(0))
        outputs = CompressorWithBase(compressor, base, *lengths).train()(ids)
        outputs.loss.backward()
        found = {name: parameter.grad for name, parameter in compressor.named_parameters()}
        return compressor.config, {"loss": outputs.loss} | found | dict(compressor.named_buffers())

    config, found = step(*arguments.split())
    assert {name: getattr(config, name) for name in changed} == changed
    _, plain = step()
    assert any(
        (tensor is None) != (plain.get(name) is None) or tensor is not None and not torch.equal(tensor, plain[name])
        for name, tensor in found.items()
    )
    # The same flags give the same step.
    again = step(*arguments.split())[1]
    assert all(tensor is None or torch.equal(tensor, again[name]) for name, tensor in found.items())


def test_an_unfrozen_base_is_trained_and_saved(bases, train_llama, tmp_path):
    arguments = ["--freeze_base", "false", "--do_train", "--max_steps", 4, "--save_steps", 2]
    arguments += ["--resume_from_checkpoint", "true", "--learning_rate", 1e-3]
    folder = train_llama(*arguments, "--do_eval", output_dir=tmp_path / "whole")
    compressor = ActivationCompressor.from_pretrained(folder).eval()
    base = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    before = weights_in(bases["llama"])
    assert all(not torch.equal(tensor, before[name]) for name, tensor in weights_in(folder / "base").items())
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    cache = compressor.compress(base, tokenizer("In the beginning " * 20, return_tensors="pt").input_ids)
    assert cache.num_bytes > 0
    with pytest.raises(ValueError, match="with other weights"):
        compressor.compress(AutoModelForCausalLM.from_pretrained(bases["llama"]), torch.arange(60)[None])
    shutil.copytree(folder / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    resumed = train_llama(*arguments, output_dir=tmp_path / "killed")
    for part in (".", "base"):
        assert_close(weights_in(resumed / part), weights_in(folder / part), rtol=0, atol=0)


def test_resumed_equals_uninterrupted(train_llama, tmp_path):
    """The thresholds too, and the learning rate."""
    arguments = ["--do_train", "--max_steps", 4, "--save_steps", 2, "--resume_from_checkpoint", "true"]
    whole = train_llama(*arguments, output_dir=tmp_path / "whole")
    killed = tmp_path / "killed"
    shutil.copytree(whole / "checkpoint-2", killed / "checkpoint-2")
    shutil.copytree(whole / "checkpoint-4", killed / "checkpoint-4")
    (killed / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = train_llama(*arguments, output_dir=killed)
    assert_close(weights_in(resumed), weights_in(whole), rtol=0, atol=0)
    assert losses_in(resumed) == losses_in(whole)
    rates = [
        [logs.get("learning_rate") for logs in read_json(folder / "trainer_state.json")["log_history"]]
        for folder in (resumed, whole)
    ]
    assert rates[0] == rates[1] and len(set(rates[0])) > 2


def test_accumulated_batches_equal_one(train_llama, tmp_path):
    arguments = ["--do_train", "--max_steps", 2, "--optim", "sgd", "--no_adaptive_threshold"]
    whole = train_llama(*arguments, "--per_device_train_batch_size", 4, output_dir=tmp_path / "whole")
    parts = train_llama(*arguments, "--gradient_accumulation_steps", 2, output_dir=tmp_path / "parts")
    assert_close(weights_in(parts), weights_in(whole), rtol=1e-4, atol=1e-6)
    assert losses_in(parts)[0]["lm_loss"] == pytest.approx(losses_in(whole)[0]["lm_loss"], rel=1e-4)


@pytest.mark.parametrize("options", [[], ["--freeze_base", "false", "--no_use_residuals"]], ids=["frozen", "unfrozen"])
def test_two_processes_equal_one(options, bases, cache_dir, train_llama, tmp_path):
    arguments = ["--do_train", "--do_eval", "--max_steps", 3, "--optim", "sgd", "--max_eval_samples", 3, *options]
    fixed = ["--model_type", "activation_compressor", "--model_name_or_path", bases["llama"], *SIZES]
    sizes = ["--per_device_eval_batch_size", 1]
    arguments_of_two = [*common_arguments(cache_dir, tmp_path / "two"), *fixed, *arguments, *sizes]
    done = run_program("train.py", *arguments_of_two, num_processes=2)
    assert done.returncode == 0, done.stderr
    one = train_llama(*arguments, "--per_device_train_batch_size", 4, output_dir=tmp_path / "one")
    for folder in ("two", "two/base") if options else ("two",):
        expected = weights_in(tmp_path / folder.replace("two", "one"))
        assert_close(weights_in(tmp_path / folder), expected, rtol=1e-4, atol=1e-6)
    assert metrics_of(tmp_path / "two") == {
        name: pytest.approx(value, rel=1e-3, abs=1e-5) for name, value in metrics_of(one).items()
    }


def test_training_goes_on_from_a_compressor(train_llama, tmp_path):
    first = train_llama(*ONE_STEP, "--residual_fraction", 0.3, output_dir=tmp_path / "first")
    arguments = ["--compressor_name_or_path", first, *ONE_STEP, "--learning_rate", 0]
    second = train_llama(*arguments, "--contrastive_weight", 0)
    weights, before = weights_in(second), weights_in(first)
    assert all(torch.equal(weights[name], before[name]) for name in before if "threshold" not in name)
    config = ActivationCompressorConfig.from_pretrained(second)
    assert config.residual_fraction == 0.3 and config.contrastive_weight == 0


@pytest.mark.parametrize("freeze_base", [True, False])
def test_bf16(freeze_base, train_llama, tmp_path):
    """What the run script asks for on a GPU: autocast, over a frozen base in bfloat16 or a trained one in float32."""
    arguments = ONE_STEP if freeze_base else [*ONE_STEP, "--no_freeze_base"]
    (exact,) = losses_in(train_llama(*arguments))
    (half,) = losses_in(train_llama(*arguments, "--bf16", output_dir=tmp_path / "half"))
    assert half["lm_loss"] == pytest.approx(exact["lm_loss"], rel=0.02)


def test_the_frozen_base_has_no_dropout():
    base = tiny_base("opt", dropout=0.5)
    model = CompressorWithBase(ActivationCompressor.from_base(base), base, 16).train()
    assert model.compressor.training and not any(module.training for module in base.modules())
    assert not any(parameter.requires_grad for parameter in base.parameters())
    unfrozen = CompressorWithBase(ActivationCompressor.from_base(base, freeze_base=False), base, 16)
    assert all(module.training for module in unfrozen.train().modules() if isinstance(module, nn.Dropout))
    assert not any(module.training for module in unfrozen.eval().modules())


def test_a_compressor_of_another_base_is_refused(bases, main, train_llama, tmp_path):
    first = train_llama(*ONE_STEP, output_dir=tmp_path / "first")
    arguments = ["--model_type", "activation_compressor", "--model_name_or_path", bases["gpt2"], *SIZES, *ONE_STEP]
    with pytest.raises(SystemExit, match="belongs to .* with other weights"):
        main(*arguments, "--compressor_name_or_path", first)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--compression_ratio 0.5", "`compression_ratio` must be 1 or more"),
        ("--compression_layers 2", "`compression_layers` must name different layers from 0 to 1"),
        ("--num_slots 6", "`num_slots` must be more than"),
        ("--compression_ratio 30", "leaves 1 slots of 48"),
        ("--continuation_length 64", "`continuation_length` must be 2 or more and below `block_size` = 64"),
        ("--segment_length 0", "`segment_length` must be 1 or more"),
        ("--similarity_threshold 2", "`similarity_threshold` must be in"),
        ("--attn_implementation flex_attention", "`attn_implementation` 'eager' or 'sdpa'"),
        ("--model_name_or_path nowhere", "Cannot read the model 'nowhere'"),
        ("--compressor_name_or_path nowhere", "--compressor_name_or_path 'nowhere' cannot be loaded"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, train_llama):
    with pytest.raises(SystemExit, match=message) as error:
        train_llama(*ONE_STEP, *arguments.split())
    assert "\n" not in str(error.value)


def test_run_script(tmp_path):
    """The arguments that it starts train.py with: the documented ones, what is set in front, and those behind."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    path = f"{tmp_path}:{environment()['PATH']}"
    settings = {"PATH": path, "OUT": str(tmp_path / "out"), "NUM_GPUS": "0"}
    done = run_command("bash", "run/train_activation.sh", "--no_use_residuals", **settings)
    assert done.returncode == 0 and done.stdout.startswith("Run cache_smollm2_x8_L1152 -> "), done.stderr
    command = done.stdout.splitlines()[1].split()
    assert command[:2] == ["train.py", "--use_cpu"] and command[-1] == "--no_use_residuals"
    parser = HfArgumentParser(training_family("activation_compressor").argument_groups)
    model_args, _, training_args = parser.parse_args_into_dataclasses(
        [argument for argument in command[1:] if argument not in ("--model_type", "activation_compressor")]
    )
    expected = ActivationArguments(model_name_or_path="smollm2", compression_ratio=8.0, use_residuals=False)
    assert model_args == expected
    assert training_args.per_device_train_batch_size == 2
    settings |= {"BASE": "gpt2", "DATA": "book.txt", "SEGMENT": "256", "FREEZE": "false"}
    done = run_command("bash", "run/train_activation.sh", **settings)
    for part in ("_segments256", "--train_file book.txt", "--segment_length 256", "--freeze_base false"):
        assert part in done.stdout
    refused = run_command("bash", "run/train_activation.sh", **settings | {"NUM_GPUS": "3"})
    assert refused.returncode == 1 and "BATCH=2 must be a multiple of the GPUs, 3." in refused.stderr


def test_run_script_end_to_end(bases, cache_dir, tmp_path):
    settings = {"OUT": str(tmp_path / "out"), "STEPS": "2", "NUM_GPUS": "0", "BASE": str(bases["gpt2"])}
    settings |= {"RATIO": "3", "LENGTH": "64", "CONTINUATION": "16", "EVAL": "1"}
    small = ["--num_sinks", 2, "--recent_window", 4, "--max_train_samples", 4, "--max_eval_samples", 2]
    done = run_script("train_activation.sh", *small, "--cache_dir", cache_dir, **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "top1_agreement" in done.stdout
    assert AutoModel.from_pretrained(tmp_path / "out").config.base_model_type == "gpt2"

"""`train.py` and the run scripts from end to end, on a tiny OPT and the bundled text.

Most runs are calls of `train.main()` in this process; those that are about processes have processes of their own.
"""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close
from train_testing import (
    ROOT,
    common_arguments,
    environment,
    losses_in,
    metrics_of,
    read_json,
    run_command,
    run_program,
    run_script,
    start_script,
    weights_in,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    set_seed,
)

from args import ModelArguments, TrainingArguments
from auto_compressor import LlamaAutoCompressorModel, OPTAutoCompressorModel, train
from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.family import add_lora, load_model_and_tokenizer, load_teacher
from auto_compressor.families import MODEL_TYPES, training_family
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from auto_compressor.files.model_card import is_ours
from auto_compressor.training.checkpoints import last_whole_checkpoint
from auto_compressor.training.family import RunArguments


SEGMENTS = "--segment_lengths 16 16 --training_substeps 2 --summary_length 4".split()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A plain OPT with dropout, 32 positions and the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    set_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=32,
        dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        init_std=0.1,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def assert_report(folder, name="validation", substeps=2, segments=2):
    """`evaluation.csv` and `eval_results.json` say the same."""
    metrics = metrics_of(folder)
    with (folder / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == [name] * (1 + substeps * (1 + segments))
    for row in rows:
        numbers = re.findall(r"\d+", row["part"])
        prefix = "".join(f"{kind}_{number}_" for kind, number in zip(("substep", "segment"), numbers, strict=False))
        for column in ("perplexity", "accuracy", "tokens"):
            assert float(row[column]) == metrics[f"eval_{name}_{prefix}{column}"]


# Models


@pytest.mark.parametrize("mode", ["compression", "variable", "ordinary", "rmt", "full_attention"])
def test_train_continue_and_reload(mode, base, main, tmp_path):
    settings = {
        "compression": [],
        "variable": ["--compression_max_len", "3", "--compression_lambda", "0.1"],
        "ordinary": ["--ordinary_summary_positions", "true", "--randomize_substeps"],
        "rmt": ["--accumulate_summary", "false"],
        "full_attention": ["--full_attention", "--max_position_embeddings", "64"],
    }[mode]
    arguments = [*SEGMENTS, *settings, "--do_train", "--do_eval", "--max_steps", 2]
    first = main("--model_name_or_path", base, *arguments)
    assert_report(first)
    config = read_json(first / "config.json")
    assert config["model_type"] == "opt_autocompressor"
    assert config["use_cache"] is True
    assert config["summary_length"] == (0 if mode == "full_attention" else 4)
    assert config["accumulate_summary"] is (mode != "rmt")
    assert config["ordinary_summary_positions"] is (mode == "ordinary")
    assert ("embed_summary.weight" in weights_in(first)) is (mode in ("compression", "ordinary", "rmt"))
    assert ("stop_head.weight" in weights_in(first)) is (mode == "variable")
    assert [set(losses) for losses in losses_in(first)] == [
        {"step", "loss", "substep_0_loss"} | ({"substep_1_loss"} if mode != "full_attention" else set())
    ] * 2

    model, info = OPTAutoCompressorModel.from_pretrained(first, output_loading_info=True)
    assert not any(info.values())
    assert_close(dict(AutoModelForCausalLM.from_pretrained(first).state_dict()), dict(model.state_dict()))
    assert model(torch.tensor([[5, 6, 7]])).cache is not None

    # Going on from it: the same model is evaluated, and then trained further.
    again = [*SEGMENTS, *settings]
    second = main("--model_name_or_path", first, *again, "--do_eval", output_dir=tmp_path / "second")
    assert metrics_of(second) == metrics_of(first)
    third = main("--model_name_or_path", first, *again, "--do_train", "--max_steps", 1, output_dir=tmp_path / "third")
    name = "model.decoder.embed_tokens.weight"
    assert not torch.equal(weights_in(third)[name], weights_in(first)[name])
    assert losses_in(third)[0]["loss"] < losses_in(first)[0]["loss"]


def test_lora_trains_adapters_and_summary_only(base, main, tmp_path):
    arguments = ["--model_name_or_path", base, *SEGMENTS]
    model_args = ModelArguments(model_name_or_path=base, lora=True)
    training_args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, summary_length=4)
    model = add_lora(load_model_and_tokenizer(model_args, training_args)[0], model_args, training_args)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "embed_summary.modules_to_save" in name for name in trainable)

    first = main(*arguments, "--lora", "--lora_r", 4, "--lora_dropout", 0, "--do_train", "--do_eval", "--max_steps", 2)
    assert_report(first)
    adapters = load_file(first / "adapter_model.safetensors")
    assert not (first / "model.safetensors").exists()
    assert {name for name in adapters if "lora_" not in name} == {"base_model.model.embed_summary.weight"}
    assert len(adapters) == 1 + 2 * 2 * 4  # A and B of q, k, v and out in two layers
    assert all(tensor.abs().sum() > 0 for tensor in adapters.values())
    assert read_json(first / "config.json")["summary_length"] == 4

    # The trained model is its frozen base and what was saved; and training goes on from it.
    second = main(*arguments, "--lora_path", first, "--do_eval", output_dir=tmp_path / "second")
    assert_close(metrics_of(second), metrics_of(first), rtol=1e-6, atol=1e-6)
    plain = main(*arguments, "--do_eval", output_dir=tmp_path / "plain")
    assert metrics_of(plain)["eval_validation_loss"] != metrics_of(first)["eval_validation_loss"]
    third = main(*arguments, "--lora_path", first, "--do_train", "--max_steps", 1, output_dir=tmp_path / "third")
    continued = load_file(third / "adapter_model.safetensors")
    assert set(continued) == set(adapters)
    assert not any(torch.equal(continued[name], adapters[name]) for name in adapters)
    assert losses_in(third)[0]["loss"] < losses_in(first)[0]["loss"]

    merged = load_autocompressor(str(first)).eval()
    assert merged.config.summary_length == 4
    assert torch.equal(merged.embed_summary.weight, adapters["base_model.model.embed_summary.weight"])
    assert is_ours((first / "README.md").read_text()) and "| validation | all |" in (first / "README.md").read_text()
    checkpoint = AutoModelForCausalLM.from_pretrained(first / "checkpoint-2")
    assert_close(checkpoint.state_dict(), merged.state_dict())
    adapted = PeftModel.from_pretrained(load_model_and_tokenizer(model_args, training_args)[0], first).eval()
    ids = torch.randint(3, 64, (2, 24))
    for call in (lambda model: model.compress(ids, segment_lengths=8), lambda model: model(ids).logits):
        assert_close(call(merged), call(adapted), rtol=0, atol=1e-5)


VARIABLE = "--compression_max_len 3 --compression_lambda 0.1 --segment_lengths 16 16 --training_substeps 2".split()


def test_variable_length_adds_the_control_tokens(base, main):
    folder = main("--model_name_or_path", base, *VARIABLE, "--do_train", "--max_steps", 1)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert tokenizer.convert_ids_to_tokens([2048, 2049]) == ["<sum>", "<eoc>"]
    assert (model.config.sum_token_id, model.config.eoc_token_id, model.config.vocab_size) == (2048, 2049, 2050)
    assert (model.config.compression_max_len, model.config.compression_lambda) == (3, 0.1)
    context = tokenizer("The king of the land", return_tensors="pt").input_ids
    softprompt = model.compress(context)
    assert 1 <= softprompt.shape[1] <= 3
    generated = model.generate(context[:, :2], softprompt=softprompt, max_new_tokens=8, do_sample=True)
    assert not set(generated[0].tolist()) & {2048, 2049}
    logs = read_json(folder / "trainer_state.json")["log_history"][0]
    assert logs["substep_0_length_penalty"] > 0 and 1 <= logs["substep_0_segment_0_expected_length"] <= 3


def test_lora_on_weights_of_4_bits(main, tmp_path):
    """Linear layers are held in bytes of two weights each; adapters and summary embeddings are trained beside them."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    base, tokenizer = str(tmp_path / "base"), AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    lora = ["--lora", "--lora_r", 4, "--lora_dropout", 0, "--load_in_4bit"]
    model_args = ModelArguments(model_name_or_path=base, lora=True, load_in_4bit=True)
    training_args = TrainingArguments("unused", summary_length=4)
    model = load_model_and_tokenizer(model_args, training_args)[0]
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.uint8 and weight.numel() == 64 * 128 // 2
    assert {model.lm_head.weight.dtype, model.embed_summary.weight.dtype} == {torch.float32}
    trained = main("--model_name_or_path", base, *SEGMENTS, *lora, "--do_train", "--do_eval", "--max_steps", 2)
    adapters = load_file(trained / "adapter_model.safetensors")
    assert any("lora_" in name for name in adapters) and "base_model.model.embed_summary.weight" in adapters
    loaded = load_autocompressor(str(trained))
    assert loaded.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert loaded.compress(torch.arange(5, 15)[None], segment_lengths=5).shape == (1, 8, 64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model_name_or_path", "{base}"], "--load_in_4bit needs --lora or --lora_path"),
        (["--config_name", "tiny", "--lora"], "--load_in_4bit needs --model_name_or_path"),
    ],
)
def test_4_bits_need_adapters_of_a_checkpoint(arguments, message, base, main):
    with pytest.raises(SystemExit, match=message):
        main(*(part.format(base=base) for part in arguments), *SEGMENTS, "--load_in_4bit", "--do_train")


def test_variable_length_lora(base, main, tmp_path):
    """Adapters hold the stop head and the rows of the control tokens, and are merged into a base without them."""
    arguments = ["--model_name_or_path", base, *VARIABLE]
    lora = ["--lora", "--lora_r", 4, "--lora_dropout", 0]
    first = main(*arguments, *lora, "--do_train", "--do_eval", "--max_steps", 2)
    adapters = load_file(first / "adapter_model.safetensors")
    assert {"base_model.model.stop_head.weight", "base_model.model.stop_head.bias"} <= set(adapters)
    rows = adapters["base_model.model.model.decoder.embed_tokens.token_adapter.trainable_tokens_delta"]
    assert rows.shape == (2, 32)
    assert all(tensor.numel() < 1000 for tensor in adapters.values())  # not the whole embeddings
    assert not any("embed_summary" in name for name in adapters)
    second = main(*arguments, "--lora_path", first, "--do_eval", output_dir=tmp_path / "second")
    assert_close(metrics_of(second), metrics_of(first), rtol=1e-6, atol=1e-6)

    merged = load_autocompressor(str(first)).eval()
    assert torch.equal(merged.get_input_embeddings().weight[2048:], rows)
    assert torch.equal(merged.stop_head.bias, adapters["base_model.model.stop_head.bias"])
    model_args = ModelArguments(model_name_or_path=base)
    training_args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, compression_max_len=3)
    model, _ = load_model_and_tokenizer(model_args, training_args)
    adapted = PeftModel.from_pretrained(model, first).eval()
    ids = torch.randint(3, 64, (2, 24))
    for call in (
        lambda model: model.compress(ids, segment_lengths=8, return_attention_mask=True),
        lambda model: model(ids).logits,
    ):
        assert_close(call(merged), call(adapted), rtol=0, atol=1e-5)


def test_teacher_and_reconstruction(base, main, tmp_path):
    full = ["--full_attention", "--max_position_embeddings", 64, "--block_size", 64]
    teacher = main("--model_name_or_path", base, *full, "--do_train", "--max_steps", 1)
    arguments = ["--model_name_or_path", base, *VARIABLE, "--nested_summaries", "--reconstruction_weight", 0.5]
    arguments += ["--distillation_weight", 0.5, "--distillation_model", teacher]
    folder = main(*arguments, "--do_train", "--max_steps", 2, output_dir=tmp_path / "student")
    for losses in losses_in(folder):
        assert {"substep_0_reconstruction_loss", "substep_1_distillation_loss"} <= set(losses)


def test_compiled_steps_are_the_same(base, main, tmp_path):
    """`--torch_compile` changes no weight, and none of their names; this backend needs no compiler."""
    arguments = ["--model_name_or_path", base, *SEGMENTS, "--do_train", "--max_steps", 2]
    plain = main(*arguments, output_dir=tmp_path / "plain")
    compiled = main(*arguments, "--torch_compile_backend", "eager", output_dir=tmp_path / "compiled")
    assert_close(weights_in(compiled), weights_in(plain))


def test_position_table_grows(base, main):
    """Segments of 40 tokens need more than the 32 positions of the base: the table is repeated."""
    arguments = ["--model_name_or_path", base, "--segment_lengths", 40, 40, "--summary_length", 4]
    with pytest.raises(SystemExit, match="`max_position_embeddings` = 32"):
        main(*arguments, "--do_eval")
    folder = main(*arguments, "--max_position_embeddings", 80, "--do_train", "--max_steps", 1, "--learning_rate", 0)
    assert read_json(folder / "config.json")["max_position_embeddings"] == 80
    name = "model.decoder.embed_positions.weight"
    old, new = weights_in(Path(base))[name], weights_in(folder)[name]
    assert_close(new[:2], old[:2])
    assert_close(new[2:], old[2:].repeat(3, 1)[:80])


def test_several_validation_files(base, main, tmp_path):
    words = "the king went up to the city, and returned to his own house.\n" * 40
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(name + words)
    files = [tmp_path / "one.txt", f"second={tmp_path / 'two.txt'}"]
    folder = main("--model_name_or_path", base, *SEGMENTS, "--do_eval", "--validation_file", *files)
    with (folder / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["one"] * 7 + ["second"] * 7
    metrics = metrics_of(folder)
    assert metrics["eval_one_tokens"] == metrics["eval_second_tokens"] == 4 * 63
    assert float(rows[7]["perplexity"]) == metrics["eval_second_perplexity"]


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--do_eval", "exactly one of --model_name_or_path .* and --config_name"),
        ("--do_eval --config_name tiny --model_name_or_path smollm2", "exactly one of"),
        ("--config_name tiny", "Nothing to do"),
        ("--do_eval --config_name tiny --training_substeps 0", "`training_substeps` must be 1 or more, got 0"),
        ("--do_eval --config_name tiny --label_smoothing_factor 0.1", "`label_smoothing_factor` must be 0"),
        ("--do_eval --config_name tiny --block_size 32 --segment_lengths 20 20", "40 tokens, a sequence has 32"),
        ("--do_eval --config_name tiny --block_size 8 --segments_per_substep 9", "`segment_lengths`"),
        (
            "--do_train --config_name tiny --block_size 8 --segments_per_substep 5 --randomize_substeps",
            "`num_segments` = 5 segments",
        ),
        ("--do_eval --config_name tiny --no_such_argument 1", "no_such_argument"),
        ("--do_eval --config_name tiny --fast_attention --attn_implementation eager", "not both"),
        ("--do_eval --config_name tiny --train_file nowhere.txt", "nowhere.txt"),
        ("--do_eval --config_name tiny --compression_lambda -1", "compression_lambda"),
        ("--do_eval --config_name tiny --compress_stop_threshold 1.5", "compress_stop_threshold"),
        ("--do_eval --config_name tiny --compression_max_len 0 --summary_length 0", "compression_max_len"),
        ("--do_eval --config_name tiny --distillation_weight 1", "distillation_model"),
        ("--do_eval --config_name {bert}", "No AutoCompressor for models of type 'bert'"),
        ("--do_eval --model_name_or_path {empty}", "Unrecognized model in .*empty"),
        ("--do_eval --model_name_or_path {base} --lora_path {empty}", "adapter_config.json"),
        ("--do_train --config_name tiny --resume_from_checkpoint {empty}", "checkpoint"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, base, main, tmp_path):
    folders = {"bert": tmp_path / "bert", "empty": tmp_path / "empty", "base": base}
    for name in ("bert", "empty"):
        folders[name].mkdir()
    (folders["bert"] / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SystemExit, match=message) as error:
        main(*arguments.format(**folders).split())
    assert error.value.code.startswith("train.py: error: ")
    assert "\n" not in error.value.code


def test_unknown_model_without_hub(tmp_path):
    arguments = ["--use_cpu", "--do_eval", "--output_dir", tmp_path]
    done = run_program("train.py", *arguments, "--model_name_or_path", "nobody/no-such-model")
    assert done.returncode == 1
    assert re.fullmatch(r"train.py: error: .*nobody/no-such-model.*`tiny`.*`smollm2`.*\n", done.stderr)


# Checkpoints and processes


def test_killed_run_goes_on(base, cache_dir, main, tmp_path):
    """kill -9 in the middle of training, and then a checkpoint that was not written to its end."""
    arguments = ["--model_name_or_path", base, *SEGMENTS, "--do_train", "--num_train_epochs", 5, "--save_steps", 4]
    arguments += ["--randomize_substeps", "--resume_from_checkpoint", "true", "--save_total_limit", 3]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "train.py", *common_arguments(cache_dir, killed), *map(str, arguments)]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (killed / "checkpoint-8").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert not (killed / "model.safetensors").exists()

    for name in ("checkpoint-99", "checkpoint-999", "checkpoint-9999"):
        shutil.copytree(killed / "checkpoint-4", killed / name)  # the first has the state of another step
    (killed / "checkpoint-999" / "trainer_state.json").write_text('{"global_st')
    (killed / "checkpoint-9999" / "trainer_state.json").unlink()
    resumed_from = last_whole_checkpoint(str(killed))
    assert Path(resumed_from).name in ("checkpoint-4", "checkpoint-8")
    main(*arguments, output_dir=whole)
    main(*arguments, output_dir=killed)
    assert_close(weights_in(killed), weights_in(whole), rtol=0, atol=0)
    assert losses_in(killed) == losses_in(whole)
    assert [losses["step"] for losses in losses_in(whole)] == list(range(1, 41))

    # Starting a finished run again changes nothing.
    main(*arguments, output_dir=killed)
    assert_close(weights_in(killed), weights_in(whole), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["fixed", "variable"])
def test_two_processes_equal_one(kind, base, cache_dir, main, tmp_path):
    settings = SEGMENTS if kind == "fixed" else [*VARIABLE, "--reconstruction_weight", 0.5]
    arguments = ["--model_name_or_path", base, *settings, "--do_train", "--do_eval", "--max_steps", 2]
    arguments += ["--max_eval_samples", 3, "--per_device_eval_batch_size", 1, "--optim", "sgd"]
    # Dropout draws other numbers in every process.
    still = tmp_path / "still"
    shutil.copytree(base, still)
    config = read_json(still / "config.json") | {"dropout": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    arguments[1] = still
    done = run_program("train.py", *common_arguments(cache_dir, tmp_path / "two"), *arguments, num_processes=2)
    assert done.returncode == 0, done.stderr
    one = main(*arguments, "--per_device_train_batch_size", 4, output_dir=tmp_path / "one")
    assert_close(weights_in(tmp_path / "two"), weights_in(one), rtol=1e-5, atol=1e-5)
    assert_close(losses_in(tmp_path / "two"), losses_in(one), rtol=1e-5, atol=1e-5)
    assert_close(metrics_of(tmp_path / "two"), metrics_of(one), rtol=1e-5, atol=1e-5)
    assert_report(tmp_path / "two")


# What it says


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "activation_compressor"])
@pytest.mark.parametrize("warm_up", [1, 2])
def test_a_warm_up_as_long_as_the_run_is_one_warning(model_type, warm_up, main, caplog):
    """In every family; a rate that is constant has none."""
    model = ["--config_name", "tiny", "--block_size", 32] if model_type == "autocompressor" else []
    model += ["--lr_scheduler_type", "linear"]
    main("--model_type", model_type, *model, "--do_train", "--max_steps", 2, "--warmup_steps", warm_up)
    assert caplog.text.count("as long as the run, 2 steps, or longer") == (warm_up == 2)


def test_a_run_says_a_short_line_for_each_report(base, cache_dir, tmp_path):
    """And nothing that sounds like a fault: of new summary vectors, of control tokens, of a tied head."""
    command = ["train.py", *common_arguments(cache_dir, tmp_path / "out"), "--model_name_or_path", base]
    command += [*VARIABLE, "--do_train", "--max_steps", 2, "--save_steps", 1, "--resume_from_checkpoint", "true"]
    for steps, run in ((2, partial(run_command, sys.executable)), (3, run_program)):
        done = run(*command, "--max_steps", steps)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert re.search(rf"step {steps}/{steps}  loss [\d.]+  learning_rate [\d.e-]+  left 0:00:00", said), said
        for word in ("{'", "must be `None`", "missing keys", "LOAD REPORT", "FutureWarning", "deprecated"):
            assert word not in said, said


# Run scripts


@pytest.mark.parametrize("kind", ["tiny", "opt", "compressor"])
def test_run_train_full_attention(kind, base, cache_dir, main, tmp_path):
    """On a new model, on a table of 32 positions for 64 tokens, and on what the same script trained."""
    name = "tiny" if kind == "tiny" else base
    if kind == "compressor":
        settings = ["--compression_max_len", 0, "--do_train", "--max_steps", 1, *SEGMENTS]
        name = str(main("--model_name_or_path", base, *settings, output_dir=tmp_path / "first"))
        assert read_json(tmp_path / "first" / "config.json")["segment_length"] == 16
    variables = {"NUM_GPUS": "0", "BASE": name, "OUT": str(tmp_path / "out"), "BATCH": "2", "MODE": "FA"}
    arguments = f"--max_steps 2 --block_size 64 --max_train_samples 8 --max_eval_samples 2 --cache_dir {cache_dir}"
    done = run_script("train.sh", *arguments.split(), TRAIN_SETS="", EVAL_SETS="", **variables)
    assert done.returncode == 0, done.stdout
    config = read_json(tmp_path / "out" / "config.json")
    assert (config["summary_length"], config["sum_token_id"], config.get("segment_length")) == (0, None, None)
    assert [losses["step"] for losses in losses_in(tmp_path / "out")] in ([], [2])
    assert_report(tmp_path / "out")


def test_a_table_that_is_too_short_for_full_attention(base, main):
    arguments = ["--model_name_or_path", base, *SEGMENTS, "--full_attention", "--do_train", "--max_steps", 1]
    with pytest.raises(SystemExit, match="--max_position_embeddings must be 64 or more"):
        main(*arguments, "--max_position_embeddings", 48)


def test_a_teacher_with_a_fixed_number_of_vectors(base, tmp_path):
    """Its config says `compression_max_len` 0, as run/train.sh writes it."""
    model = load_autocompressor(base, summary_length=4, compression_max_len=0)
    model.save_pretrained(tmp_path)
    arguments = {"distillation_weight": 1.0, "distillation_model": str(tmp_path), "use_cpu": True}
    teacher = load_teacher(TrainingArguments(output_dir=str(tmp_path), **arguments), model)
    assert teacher.config.max_vectors == 0


GPU_SCRIPTS = ["train.sh", "train_adaptive.sh", "train_hierarchical.sh", "train_continuous.sh", "train_activation.sh"]


@pytest.mark.parametrize("script", [*GPU_SCRIPTS, "eval_llama.sh", "train_baseline.sh", "train_llama.sh"])
@pytest.mark.parametrize(
    "found, given, begins", [(0, None, "python train.py --use_cpu"), (2, None, "torchrun"), (2, "3", "")]
)
def test_run_scripts_find_the_gpus(script, found, given, begins, tmp_path):
    """All that are there are used, none is needed, more are refused. `python` and `torchrun` only say their line."""
    for name in ("python", "torchrun"):
        count = f'[ "$1" != -c ] || {{ echo {found}; exit; }}'
        (tmp_path / name).write_text(f'#!/bin/bash\n{count}\necho "{name} $*"\n')
        (tmp_path / name).chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{environment()['PATH']}", "OUT": str(tmp_path / "out"), "BASE": "tiny"}
    settings |= {} if given is None else {"NUM_GPUS": given, "BATCH": "12", "BATCH_SIZE": "12"}
    done = run_command("bash", f"run/{script}", **settings)
    assert "Traceback" not in done.stdout + done.stderr
    if begins:
        assert done.returncode == 0, done.stdout + done.stderr
        started = re.search(rf"^{begins}.*$", done.stdout, flags=re.MULTILINE).group()
        assert begins != "torchrun" or "--nproc_per_node 2" in started
    else:
        assert done.returncode == 1 and "NUM_GPUS must be 0 to 2" in done.stdout + done.stderr


# What a script says of its run alone; the recommended settings are the defaults of the arguments.
NAMES_A_RUN = {"output_dir", "run_name", "do_train", "do_eval", "report_to", "resume_from_checkpoint", "use_cpu"}
NAMES_A_RUN |= {"eval_strategy", "eval_steps", "save_steps", "save_total_limit", "logging_steps", "logging_dir"}


def script_arguments(script, tmp_path):
    """The arguments that a script starts train.py with."""
    return start_script(script, OUT=str(tmp_path / "out"), NUM_GPUS="0")[1][1:]


def settings_of_a_run(model_type, flags):
    """What decides the model and its training: arguments, where they are None the config of the model."""
    family = training_family(model_type)
    arguments = RunArguments(*HfArgumentParser(family.argument_groups).parse_args_into_dataclasses(flags))
    training = {name: value for name, value in vars(arguments.training).items() if name not in NAMES_A_RUN}
    training = {name: value for name, value in training.items() if not name.startswith(("_", "distributed_state"))}
    if model_type == "activation_compressor":  # its base is not here
        model, block_size = vars(arguments.model), family.block_size(None, arguments)
    else:
        loaded = family.load(arguments)[0]
        model, block_size = loaded.config.to_dict(), family.block_size(loaded, arguments)
    return model, training, arguments.data.block_size or block_size


@pytest.mark.parametrize(
    "script, model_type",
    [
        ("train_hierarchical.sh", "hierarchical_autoencoder"),
        ("train_adaptive.sh", "adaptive_byte"),
        ("train_baseline.sh", "gru_byte"),
        ("train_continuous.sh", "continuous_text_autoencoder"),
        ("train_activation.sh", "activation_compressor"),
    ],
)
def test_scripts_only_name_runs(script, model_type, tmp_path):
    """`python train.py --model_type X` trains what the script of X trains."""
    flags = script_arguments(script, tmp_path)
    at = flags.index("--model_type")
    assert flags[at + 1] == model_type
    base = ["--model_name_or_path", "smollm2"] if model_type == "activation_compressor" else []
    found = settings_of_a_run(model_type, flags[:at] + flags[at + 2 :])
    assert found == settings_of_a_run(model_type, [*base, "--use_cpu"])


@pytest.mark.parametrize(
    "flags, max_steps", [([], 300), (["--num_train_epochs", "2"], -1), (["--num_train_epochs=2"], -1)]
)
@pytest.mark.parametrize("given", [None, 7])
def test_epochs_that_are_given_decide(flags, max_steps, given, monkeypatch, tmp_path):
    """Not the default number of steps of a family, unless steps are given too."""
    runs = []
    monkeypatch.setattr(train, "run", lambda family, arguments: runs.append(arguments.training))
    steps = [] if given is None else ["--max_steps", str(given)]
    train.main(
        ["--model_type", "hierarchical_autoencoder", "--output_dir", str(tmp_path), "--use_cpu", *flags, *steps]
    )
    assert runs[0].max_steps == (max_steps if given is None else given)
    assert runs[0].num_train_epochs == (2 if flags else 1)


def test_run_scripts_parse():
    scripts = sorted((ROOT / "run").glob("*.sh"))
    assert len(scripts) >= 6
    for script in scripts:
        assert run_command("bash", "-n", script).stderr == ""


def test_run_train_end_to_end(cache_dir, tmp_path):
    """The model `tiny` by the script, all variables on top of it."""
    variables = {"NUM_GPUS": "0", "BASE": "tiny", "OUT": str(tmp_path), "BATCH": "4", "SEQ": "2", "SUM": "4"}
    arguments = f"--max_steps 1 --block_size 64 --max_train_samples 16 --max_eval_samples 4 --cache_dir {cache_dir}"
    done = run_command("bash", "run/train.sh", *arguments.split(), MODE="RMT", **variables)
    assert done.returncode == 0, done.stdout
    assert_report(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert (config["summary_length"], config["accumulate_summary"], config["use_cache"]) == (4, False, True)
    assert "Evaluation" in (tmp_path / "log.txt").read_text()
    model = LlamaAutoCompressorModel.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.compress(**tokenizer("The king", return_tensors="pt")).shape == (1, 4, model.config.hidden_size)


def test_run_train_variable_length(cache_dir, tmp_path):
    variables = {"NUM_GPUS": "0", "BASE": "tiny", "OUT": str(tmp_path), "BATCH": "4", "SEQ": "2", "CML": "3"}
    arguments = f"--max_steps 1 --block_size 64 --max_train_samples 16 --max_eval_samples 4 --cache_dir {cache_dir}"
    done = run_script("train.sh", *arguments.split(), "--compression_lambda", "0.5", **variables)
    assert done.returncode == 0, done.stdout
    assert "Run ac_tiny_sub2_seg2_cml3_" in done.stdout
    config = read_json(tmp_path / "config.json")
    assert (config["compression_max_len"], config["compression_lambda"], config["sum_token_id"]) == (3, 0.5, 2048)


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"MODE": "XX"}, "MODE must be CP, RMT or FA, got XX"),
        ({"CML": "many"}, "CML must be 0 or a number of summary vectors, got many"),
        ({"BATCH": "16", "SEQ": "3"}, "BATCH=16 must be a multiple of GPUs x SEQ = 1 x 3"),
    ],
)
def test_run_train_refuses(variables, message, tmp_path):
    """Before anything runs: `python` does nothing here."""
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    out, path = tmp_path / "out", f"{tmp_path}:{environment()['PATH']}"
    done = run_command("bash", "run/train.sh", BASE="tiny", OUT=str(out), PATH=path, **variables)
    assert done.returncode == 1
    assert re.fullmatch(f"train.sh: error: .*{message}.*\n", done.stderr)
    assert not out.exists()

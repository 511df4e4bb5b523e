"""Training byte language models with `train.py`, and what evaluation measures."""

import ast
import csv
import itertools
import json
import math
import shutil

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
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
    weights_in,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.integrations import TensorBoardCallback

import data
from args import AdaptiveByteArguments, ByteLMTrainingArguments, DataTrainingArguments
from auto_compressor import (
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    ByteLMOutput,
    ByteTokenizer,
    GRUByteConfig,
    GRUByteForCausalLM,
)
from auto_compressor.byte_lm import metrics as byte_lm
from auto_compressor.byte_lm.carried_state import CarriedState, LaneSampler
from auto_compressor.byte_lm.family import WINDOW, load_byte_lm
from auto_compressor.byte_lm.trainer import ByteLMTrainer
from auto_compressor.families import training_family
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT, BUNDLED_VALIDATION_TEXT
from auto_compressor.training import mixin
from data import load_datasets, with_wikitext


SIZES = "--hidden_size 8 --sequence_length 32 --byte_entropy_threshold 12 --meta_uncertainty_threshold 2".split()
TINY = {name: ["--model_type", name, *SIZES] for name in ("adaptive_byte", "gru_byte")}
DOCUMENTS = ["--no_window_end_target", "--carry_state"]
OPTIONS = [*DOCUMENTS, "--add_encoder_states", "--detach_meta_targets", "--target_ratios", 3, 2]
families = pytest.mark.parametrize("family", TINY)

TEXT = b"In the beginning God created the heavens and the earth. The earth was without form and void." * 2


def tiny_model(family, **fields):
    torch.manual_seed(0)
    if family == "gru_byte":
        return GRUByteForCausalLM(GRUByteConfig(hidden_size=8, **fields)).double().eval()
    thresholds = {"byte_entropy_threshold": 12.0, "meta_uncertainty_threshold": 2.0}
    return AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=8, **thresholds, **fields)).double().eval()


def random_rows(lengths, seed=0):
    """Right-padded bytes; every row ends with the end of the text."""
    ids = torch.randint(256, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 256
    return ids, mask.long()


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Arguments for small documents of many lengths."""
    folder, text = tmp_path_factory.mktemp("documents"), BUNDLED_TRAIN_TEXT.read_text()
    starts = [0, *itertools.accumulate([40, 10, 150, 64, 33, 96, 31, 7, 120, 80, 100, 60])]
    for split in ("train", "validation"):
        rows = [json.dumps({"text": text[start:end]}) + "\n" for start, end in itertools.pairwise(starts)]
        (folder / f"{split}.jsonl").write_text("".join(rows if split == "train" else rows[::-1]))
    return ["--train_file", folder / "train.jsonl", "--validation_file", folder / "validation.jsonl"]


# What evaluation measures


@torch.no_grad()
@pytest.mark.parametrize("end_target", [True, False])
@families
def test_metrics_by_hand(family, end_target):
    """With plain loops over bytes."""
    model, (ids, mask) = tiny_model(family), random_rows([20, 9, 1, 14])
    output, first = model(ids, mask), torch.randn(4, 257)
    found = byte_lm.byte_lm_metrics(byte_lm.byte_lm_statistics(output, ids, mask, end_target, first))
    bits, num_bytes, losses, histogram = 0.0, 0, {"encoder": [], "decoder": []}, [0] * byte_lm.NUM_ENTROPY_BINS
    encoder_logits = output.logits if family == "gru_byte" else output.encoder_logits
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        for position in range(length):
            before = output.logits[row, position - 1] if position else first[row]
            if ids[row, position] < 256:
                bits -= before[:256].log_softmax(dim=0)[ids[row, position]].item() / math.log(2)
                num_bytes += 1
            probs = encoder_logits[row, position].softmax(dim=0)
            histogram[int(-(probs * probs.log()).sum().item() / 0.25)] += 1
            if end_target or position < length - 1:
                target = ids[row, position + 1] if position < length - 1 else 256
                for name, logits in (("encoder", encoder_logits), ("decoder", output.logits)):
                    losses[name].append(-logits[row, position].log_softmax(dim=0)[target].item())
    assert found["bits_per_byte"] == pytest.approx(bits / num_bytes) and found["bytes"] == num_bytes
    for name, values in losses.items():
        assert found[f"byte_{name}_bpb"] == pytest.approx(sum(values) / len(values) / math.log(2))
    assert found["entropy_histogram"] == histogram
    if family == "adaptive_byte":
        units = [num_bytes, *(int(borders.sum()) for borders in output.border_masks)]
        assert [found[f"level_{level}_borders"] for level in (1, 2)] == units[1:]
        ratios = [found[f"level_{level}_compression_ratio"] for level in (1, 2)]
        assert ratios == pytest.approx([below / above for below, above in itertools.pairwise(units)])


@torch.no_grad()
@families
def test_reference_metrics_are_the_models_losses(family):
    model, (ids, mask) = tiny_model(family), random_rows([20, 9, 14])
    found = byte_lm.byte_lm_metrics(byte_lm.byte_lm_statistics(model(ids, mask), ids, mask, True))
    losses = model(ids, mask, labels=ids.masked_fill(mask == 0, -100)).losses
    assert found["byte_decoder_bpb"] == pytest.approx(losses["byte_decoder"].item() / math.log(2))
    encoder = losses.get("byte_encoder", losses["byte_decoder"])
    assert found["byte_encoder_bpb"] == pytest.approx(encoder.item() / math.log(2))


def test_a_model_that_knows_nothing_needs_8_bits():
    ids, mask = random_rows([20, 9])
    output = ByteLMOutput(logits=torch.zeros(2, 20, 257))
    found = byte_lm.byte_lm_metrics(byte_lm.byte_lm_statistics(output, ids, mask, True))
    assert found["bits_per_byte"] == pytest.approx(8.0)
    assert found["byte_decoder_bpb"] == found["byte_encoder_bpb"] == pytest.approx(math.log2(257))
    assert found["entropy_histogram"][22] == 29  # ln 257 = 5.55 nats


def test_no_bytes_are_no_measurement():
    ids, mask = random_rows([1, 1])
    output = ByteLMOutput(logits=torch.zeros(2, 1, 257))
    with pytest.raises(ValueError, match="one byte of text"):
        byte_lm.byte_lm_metrics(byte_lm.byte_lm_statistics(output, ids, mask, True))


def bits_of(model, pieces):
    """Bits of pieces of text, each read in one pass."""
    bits = 0.0
    for piece in pieces:
        logits = model(torch.tensor([list(piece)])).logits[0, :-1, :256]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(list(piece[1:])), reduction="sum")
        bits += 8 + nats.item() / math.log(2)
    return bits


@torch.no_grad()
@pytest.mark.parametrize("num_lanes", [1, 3, 4, 50])
@families
def test_carried_windows_are_one_text(family, num_lanes):
    """What every lane costs is what its part of the text costs in one pass; lanes differ by one window at most."""
    model, window = tiny_model(family), 16
    found = byte_lm.measure_byte_lm(model, TEXT, window, num_lanes, carry_state=True)
    windows = -(-len(TEXT) // window)
    length, longer = divmod(windows, num_lanes)
    ends = list(itertools.accumulate(window * (length + (lane < longer)) for lane in range(num_lanes)))
    pieces = [TEXT[start:end] for start, end in itertools.pairwise([0, *ends]) if start < end]
    assert found["bits_per_byte"] == pytest.approx(bits_of(model, pieces) / len(TEXT), rel=1e-9)
    assert found["bytes"] == len(TEXT)


@torch.no_grad()
@families
def test_windows_by_themselves(family):
    model = tiny_model(family)
    pieces = [TEXT[start : start + 16] for start in range(0, len(TEXT), 16)]
    for num_lanes in (1, 5):
        found = byte_lm.measure_byte_lm(model, TEXT, 16, num_lanes)
        assert found["bits_per_byte"] == pytest.approx(bits_of(model, pieces) / len(TEXT), rel=1e-9)


# What is carried


@given(st.integers(0, 60), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_lanes(num_rows, num_lanes):
    order = list(LaneSampler(num_rows, num_lanes))
    assert sorted(order) == list(range(num_rows)) and len(LaneSampler(num_rows, num_lanes)) == num_rows
    batches = [order[start : start + num_lanes] for start in range(0, num_rows, num_lanes)]
    for before, batch in itertools.pairwise(batches):
        assert batch == [row + 1 for row in before[: len(batch)]]


@torch.no_grad()
@families
def test_documents_begin_anew(family, tmp_path):
    """Rows whose document ended are as new ones, the others go on; a saved state is the same."""
    model, (ids, mask) = tiny_model(family), random_rows([20, 9, 14, 20])
    ids[3, -1] = 65  # this document goes on
    left = CarriedState.after(model(ids, mask, use_cache=True), ids, mask)
    left.save(tmp_path / "state.safetensors")
    loaded = CarriedState.load(tmp_path / "state.safetensors", torch.device("cpu"))
    following = random_rows([12, 12, 12, 12], seed=1)[0]
    output = model(following, cache=left.first_rows(4).cache)
    alone = model(following)
    whole = model(torch.cat([ids[3:], following[3:]], dim=1))
    assert_close(output.logits[:3], alone.logits[:3])
    assert_close(output.logits[3], whole.logits[0, 20:])
    assert not torch.allclose(output.logits[3], alone.logits[3])
    assert (left.logits[:3] == 0).all()
    assert_close(left.logits[3], whole.logits[0, 19])
    again = model(following[:2], cache=loaded.first_rows(2).cache)
    assert_close(again.logits, output.logits[:2])
    assert_close(loaded.first_rows(2).logits, left.logits[:2])


def test_carried_training_equals_a_loop(documents, main, tmp_path):
    """Two lanes of windows, each from the states of the step before, without their gradients."""
    arguments = [*TINY["gru_byte"], *documents, *DOCUMENTS, "--optim", "sgd", "--max_train_samples", 1000]
    arguments += ["--do_train", "--max_grad_norm", 0, "--weight_decay", 0]
    initial = main(*arguments, "--max_steps", 1, "--learning_rate", 0, output_dir=tmp_path / "initial")
    windows = [
        ids[start : start + 32]
        for ids in ([*json.loads(line)["text"].encode(), 256] for line in documents[1].open())
        for start in range(0, len(ids), 32)
    ]
    num_steps = -(-len(windows) // 2)
    lanes, caches = [windows[:num_steps], windows[num_steps:]], [None, None]
    trained = main(*arguments, "--max_steps", num_steps + 2, output_dir=tmp_path / "trained")
    model = AutoModelForCausalLM.from_pretrained(initial)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(num_steps + 2):
        if step == num_steps:  # an epoch begins from nothing
            caches = [None, None]
        total, num_targets = 0.0, 0
        for index, lane in enumerate(lanes):
            for window in lane[step % num_steps : step % num_steps + 1]:
                ids = torch.tensor([window])
                output = model(ids, labels=ids, cache=caches[index], use_cache=True)
                caches[index] = None if window[-1] == 256 else output.cache
                total, num_targets = total + output.loss * (len(window) - 1), num_targets + len(window) - 1
        optimizer.zero_grad()
        (total / num_targets).backward()
        optimizer.step()
    assert len({len(window) for window in windows}) > 10
    assert_close(weights_in(trained), dict(model.state_dict()), rtol=1e-5, atol=1e-6)


def test_a_stream_has_no_lanes(main):
    with pytest.raises(SystemExit, match="a stream has no lanes"):
        main(*TINY["gru_byte"], "--carry_state", "--streaming", "--do_train", "--max_steps", 1)


# Training


@pytest.mark.parametrize("options", [[], OPTIONS], ids=["parity", "options"])
@families
def test_train_evaluate_and_reload(family, options, main):
    arguments = ["--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1]
    folder = main(*TINY[family], *options, *arguments, "--do_train", "--do_eval")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == family and type(tokenizer) is ByteTokenizer and model.config.use_cache
    assert model.config.pad_token_id == 256 and model.generation_config.pad_token_id in (None, 256)
    assert model.config.carry_state == bool(options) and model.config.window_end_target == (not options)
    metrics = metrics_of(folder)
    histogram = metrics.pop("eval_validation_entropy_histogram")
    with (folder / "evaluation.csv").open() as file:
        rows = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert {f"eval_validation_{name}": value for name, value in rows.items()} == metrics
    assert rows["bytes"] == sum(histogram) == 4 * 32
    names = {"byte_decoder"}
    if family == "adaptive_byte":
        names |= {"byte_encoder", "meta", "uncertainty", "entropy_reg"}
    assert [set(losses) for losses in losses_in(folder)] == [{f"{name}_loss" for name in names} | {"loss", "step"}] * 2
    history = read_json(folder / "trainer_state.json")["log_history"]
    evaluated = [logs for logs in history if "eval_validation_bits_per_byte" in logs]
    assert [sum(logs["eval_validation_entropy_histogram"]) for logs in evaluated] == [128, 128]


def test_bits_per_byte_of_the_report(main, tmp_path):
    """They are those of the saved model, in windows or carried, whichever way it was trained."""
    text = BUNDLED_VALIDATION_TEXT.read_bytes()[:320]
    for options, carried in ((["--no_window_end_target"], False), (DOCUMENTS, True)):
        arguments = [*TINY["adaptive_byte"], *options, "--do_train", "--do_eval", "--max_steps", 1]
        arguments += ["--max_eval_samples", 10, "--per_device_eval_batch_size", 3]
        folder = main(*arguments, output_dir=tmp_path / f"carried_{carried}")
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        found = byte_lm.measure_byte_lm(model, text, 32, 3, carry_state=carried)
        reported = metrics_of(folder)
        for name in ("bits_per_byte", "level_1_borders", "level_2_compression_ratio"):
            assert reported[f"eval_validation_{name}"] == pytest.approx(found[name], rel=1e-5)


def test_windows_of_documents(documents, main):
    """Published windows go across documents, without what is left; others read all of them, and their ends."""
    lengths = [len(json.loads(line)["text"].encode()) for line in documents[3].open()]
    for options, num_bytes in (([], sum(lengths) // 32 * 32), (["--no_window_end_target"], sum(lengths))):
        folder = main(*TINY["gru_byte"], *options, *documents, "--do_eval", "--max_eval_samples", 100)
        assert metrics_of(folder)["eval_validation_bytes"] == num_bytes


def test_reported_losses_are_the_models(main):
    (losses,) = losses_in(main(*TINY["adaptive_byte"], "--do_train", "--max_steps", 1, "--entropy_floor", 9))
    expected = losses["byte_encoder_loss"] + losses["byte_decoder_loss"] + losses["meta_loss"]
    expected += 0.1 * losses["uncertainty_loss"] + 1e-3 * losses["entropy_reg_loss"]
    assert losses["loss"] == pytest.approx(expected, rel=1e-4)
    assert losses["byte_encoder_loss"] == pytest.approx(math.log(257), rel=0.05)
    assert losses["entropy_reg_loss"] == pytest.approx((9 - math.log(257)) ** 2, rel=0.1)


def test_reported_losses_of_accumulated_batches(main, tmp_path):
    """The means over batches, whether a step has one or two of them."""
    arguments = [*TINY["gru_byte"], "--do_train", "--learning_rate", 0, "--max_steps", 2, "--logging_steps", 2]
    whole = main(*arguments, "--per_device_train_batch_size", 4, output_dir=tmp_path / "whole")
    parts = main(*arguments, "--gradient_accumulation_steps", 2, output_dir=tmp_path / "parts")
    (whole,), (parts,) = losses_in(whole), losses_in(parts)
    assert parts["byte_decoder_loss"] == pytest.approx(whole["byte_decoder_loss"], rel=1e-5)
    assert parts["byte_decoder_loss"] == pytest.approx(parts["loss"], rel=1e-3)


@pytest.mark.parametrize("family, options", [("adaptive_byte", OPTIONS), ("gru_byte", [])])
def test_resumed_equals_uninterrupted(family, options, documents, main, tmp_path):
    """From what a killed run leaves: one whole checkpoint, in an epoch or at its end, and one that is not."""
    arguments = [*TINY[family], *options, *documents, "--max_train_samples", 12, "--do_train", "--num_train_epochs", 2]
    arguments += ["--max_steps", -1, "--save_steps", 2, "--resume_from_checkpoint", "true"]
    whole = main(*arguments, output_dir=tmp_path / "whole")
    assert [losses["step"] for losses in losses_in(whole)] == list(range(1, 13))
    assert (whole / "checkpoint-4" / "carried_state_0.safetensors").exists() == bool(options)
    for step in (4, 6):
        killed = tmp_path / f"killed_{step}"
        shutil.copytree(whole / f"checkpoint-{step}", killed / f"checkpoint-{step}")
        shutil.copytree(whole / "checkpoint-8", killed / "checkpoint-8")
        (killed / "checkpoint-8" / "trainer_state.json").unlink()
        resumed = main(*arguments, output_dir=killed)
        assert_close(weights_in(resumed), weights_in(whole), rtol=0, atol=0)
        assert losses_in(resumed) == losses_in(whole)


def test_a_finished_run_stays_as_it_is(main):
    arguments = [*TINY["gru_byte"], "--do_train", "--max_steps", 3, "--save_steps", 3]
    weights = weights_in(main(*arguments))
    again = main(*arguments, "--resume_from_checkpoint", "true")
    assert_close(weights_in(again), weights, rtol=0, atol=0)


def test_evaluation_leaves_the_carried_state_alone(documents, main, tmp_path):
    arguments = [*TINY["adaptive_byte"], *OPTIONS, *documents, "--do_train", "--max_steps", 5]
    evaluated = main(*arguments, "--eval_strategy", "steps", "--eval_steps", 1, output_dir=tmp_path / "evaluated")
    plain = main(*arguments, output_dir=tmp_path / "plain")
    assert_close(weights_in(evaluated), weights_in(plain), rtol=0, atol=0)


@pytest.mark.parametrize("family, options", [("adaptive_byte", OPTIONS), ("gru_byte", DOCUMENTS)])
def test_two_processes_equal_one(family, options, cache_dir, documents, main, tmp_path):
    arguments = [*TINY[family], *options, *documents, "--do_train", "--do_eval", "--max_steps", 4, "--optim", "sgd"]
    arguments += ["--max_eval_samples", 7, "--max_train_samples", 16]
    sizes = ["--per_device_eval_batch_size", 1]
    two = [*common_arguments(cache_dir, tmp_path / "two"), *arguments, *sizes]
    done = run_program("train.py", *two, num_processes=2)
    assert done.returncode == 0, done.stderr
    sizes = ["--per_device_eval_batch_size", 2, "--per_device_train_batch_size", 4]
    one = main(*arguments, *sizes, output_dir=tmp_path / "one")
    assert_close(weights_in(tmp_path / "two"), weights_in(one), rtol=1e-5, atol=1e-5)
    assert_close(metrics_of(tmp_path / "two"), metrics_of(one), rtol=1e-5, atol=1e-5)
    for two, same in zip(losses_in(tmp_path / "two"), losses_in(one), strict=True):
        assert two == pytest.approx(same, rel=1e-3)


def test_predictions_are_in_the_order_of_the_rows(tmp_path, monkeypatch):
    """Whatever the order in which rows were read, the longest first."""
    lengths = [3, 9, 5, 9, 1, 7]
    rows = Dataset.from_list([{"input_ids": random_rows([length], length)[0][0]} for length in lengths])
    assert mixin.longest_first(rows) == [1, 3, 5, 2, 0, 4]
    arguments = ByteLMTrainingArguments(tmp_path, use_cpu=True, per_device_eval_batch_size=2, report_to="none")
    trainer = ByteLMTrainer(tiny_model("gru_byte"), arguments, data_collator=data.DataCollator(257))
    by_length = trainer.predict(rows)
    monkeypatch.setattr(mixin, "longest_first", lambda dataset: None)
    in_turn = trainer.predict(rows)
    assert_close(by_length.predictions, in_turn.predictions, rtol=1e-12, atol=1e-12)
    assert_close(by_length.label_ids, in_turn.label_ids, rtol=1e-12, atol=1e-12)
    assert len(set(map(tuple, by_length.predictions[0].tolist()))) == len(set(lengths))


def test_histograms_go_to_tensorboard():
    class Writer:
        shown = []

        def add_histogram(self, name, values, step, bins):
            self.shown.append((name, torch.histc(torch.tensor(values), len(bins) - 1, bins[0], bins[-1]), step))

    callback = TensorBoardCallback.__new__(TensorBoardCallback)
    callback.tb_writer = Writer()
    trainer = ByteLMTrainer(tiny_model("gru_byte"))
    trainer.callback_handler.callbacks = [callback]
    callback.on_log = lambda *args, **kwargs: None
    counts = [3, 0, 1, 2]
    trainer.log({"eval_bits_per_byte": 2.0, "eval_entropy_histogram": counts})
    ((name, shown, step),) = Writer.shown
    assert (name, shown.tolist(), step) == ("eval_entropy_histogram", counts, 0)
    assert trainer.state.log_history[-1]["eval_entropy_histogram"] == counts


# Arguments


def test_fields_of_the_config():
    flags = ["--hidden_size", "16", "--num_levels", "4", "--threshold", "0.2", "--byte-entropy-threshold", "12"]
    flags += ["--meta_uncertainty_threshold", "1", "2", "--entropy-floor", "0.5", "--entropy-reg-weight", "0.01"]
    flags += ["--border-mode", "teacher_forced", "--dropout", "0.1", "--detach-meta-targets"]
    flags += ["--encoder_loss_weight", "0.3", "--meta_loss_weight", "0.2"]
    (arguments,) = HfArgumentParser(AdaptiveByteArguments).parse_args_into_dataclasses(flags)
    config = load_byte_lm(AdaptiveByteConfig, arguments).config
    assert (config.hidden_size, config.num_levels, config.border_error_threshold) == (16, 4, 0.2)
    assert (config.byte_entropy_threshold, config.meta_uncertainty_threshold) == (12.0, [1.0, 2.0])
    assert (config.entropy_floor, config.entropy_reg_weight, config.dropout) == (0.5, 0.01, 0.1)
    assert config.border_mode == "teacher_forced" and config.detach_meta_targets
    assert (config.encoder_loss_weight, config.meta_loss_weight) == (0.3, 0.2)
    baseline = load_byte_lm(GRUByteConfig, arguments)
    assert (baseline.config.hidden_size, baseline.config.num_levels, baseline.config.dropout) == (16, 4, 0.1)
    assert baseline.num_parameters() == AdaptiveByteForCausalLM(config).num_parameters()


def test_published_defaults():
    arguments = HfArgumentParser(training_family("adaptive_byte").argument_groups).parse_args_into_dataclasses([])
    model_args, _, training_args = arguments
    config = load_byte_lm(AdaptiveByteConfig, model_args).config
    assert config.to_diff_dict() == AdaptiveByteConfig(architectures=config.architectures).to_diff_dict()
    assert (WINDOW, training_args.per_device_train_batch_size) == (128, 8)
    assert (training_args.learning_rate, training_args.weight_decay) == (3e-4, 1e-2)
    assert (training_args.max_steps, training_args.lr_scheduler_type) == (10_000, "constant")
    assert model_args.threshold == config.border_error_threshold


def test_parameters_are_reported(main, caplog):
    main(*TINY["gru_byte"], "--do_eval")
    model = GRUByteForCausalLM(GRUByteConfig(hidden_size=8))
    counts = f"{model.num_parameters()} trainable parameters, {model.num_effective_parameters} effective"
    assert counts in caplog.text
    assert model.num_effective_parameters < model.num_parameters()


def test_run_name(main):
    folder = main(*TINY["gru_byte"], "--per_device_train_batch_size", 64, "--do_train", "--max_steps", 1)
    assert torch.load(folder / "training_args.bin", weights_only=False).run_name == "gru_byte_L32_B2k"


@families
def test_training_goes_on_from_a_model(family, main, tmp_path):
    first = main(*TINY[family], "--do_train", "--max_steps", 1, output_dir=tmp_path / "first")
    arguments = ["--model_type", family, "--model_name_or_path", first, "--sequence_length", 32]
    second = main(*arguments, "--carry_state", "--do_train", "--max_steps", 1, "--learning_rate", 0)
    assert_close(weights_in(second), weights_in(first), rtol=0, atol=0)
    config = AutoModelForCausalLM.from_pretrained(second).config
    assert config.hidden_size == 8 and config.carry_state
    with pytest.raises(SystemExit, match="cannot be loaded"):
        main(*arguments, "--hidden_size", 16, "--do_train", "--max_steps", 1, output_dir=tmp_path / "wider")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--num_levels 0", "`num_levels` must be 1 or more"),
        ("--border_mode entropy", "`border_mode` must be one of"),
        ("--target_ratios 4", "`target_ratios` must have a ratio"),
        ("--meta_uncertainty_threshold 1 2 3", "`meta_uncertainty_threshold` must have"),
        ("--sequence_length 0", "block_size must be 1 or more"),
        ("--model_name_or_path nowhere", "--model_name_or_path 'nowhere' cannot be loaded"),
        ("--border_mode teacher_forced --carry_state", "`border_mode` teacher_forced"),
        ("--segment_lengths 16 16", "segment_lengths"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, main):
    with pytest.raises((SystemExit, ValueError), match=message):  # the parser raises a ValueError itself
        main(*TINY["adaptive_byte"], "--do_train", "--max_steps", 1, *arguments.split())


# WikiText-103


def test_bundled_text_without_a_hub(main, caplog):
    folder = main(*TINY["gru_byte"], "--do_eval")
    (line,) = [record.getMessage() for record in caplog.records if "WikiText" in record.getMessage()]
    assert line.startswith("No WikiText-103, the bundled text is used: Couldn't reach") and "\n" not in line
    assert metrics_of(folder)["eval_validation_bytes"] == 128


LINES = ["", " = A = \n", "", " Text of A . \n", " = = Part = = \n", " More . \n", "", " = B = \n", " Text of B . \n"]


@pytest.fixture
def wikitext(monkeypatch):
    """The hub, with a small WikiText; returns what is asked for."""
    asked, load_dataset = [], datasets.load_dataset

    def load(name, *args, **kwargs):
        if name != "Salesforce/wikitext":
            return load_dataset(name, *args, **kwargs)
        asked.append((name, *args))
        split = Dataset.from_dict({"text": LINES})
        return DatasetDict({"train": split, "validation": split, "test": split})

    monkeypatch.setattr(data, "load_dataset", load)
    return asked


def test_wikitext_where_the_hub_is_reached(wikitext, tmp_path):
    data_args = with_wikitext(DataTrainingArguments(), None)
    assert set(wikitext) == {("Salesforce/wikitext", "wikitext-103-raw-v1")}
    text, tokenizer = "".join(LINES).encode(), ByteTokenizer()
    packed, _ = load_datasets(data_args, tokenizer, 8, str(tmp_path))
    assert sum(packed["input_ids"], []) == list(text[: len(text) // 8 * 8])
    data_args.add_special_tokens = True
    articles, validation = load_datasets(data_args, tokenizer, 999, str(tmp_path), cut=data.cut_documents)
    start = text.index(b" = B")
    assert articles["input_ids"] == [[*text[:start], 256], [*text[start:], 256]]
    assert list(validation) == ["validation"]


@pytest.mark.parametrize("source", [{"train_file": ["a.txt"]}, {"dataset_name": "other"}])
def test_wikitext_only_where_nothing_is_named(source, wikitext):
    data_args = DataTrainingArguments(**source)
    assert with_wikitext(data_args, None) == data_args and not wikitext


# Scripts


def test_models_of_the_benchmark():
    """Its flags are those of train.py."""
    tree = ast.parse((ROOT / "benchmarks" / "adaptive.py").read_text())
    lists = [
        node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Dict)
    ]
    found = {}
    exec(compile(ast.Module(lists, []), "adaptive.py", "exec"), found)
    for name, flags in found["RUNS"].items():
        (arguments,) = HfArgumentParser(AdaptiveByteArguments).parse_args_into_dataclasses(flags)
        has_options = "options" in name or name == "two levels"
        assert arguments.carry_state == ("carried" in name or has_options or name == "baseline, two levels")
        assert bool(arguments.target_ratios) == ("ratios" in name or has_options)
        assert arguments.add_encoder_states == ("encoder" in name or has_options)


def test_run_baseline(cache_dir, tmp_path):
    """The script of the baseline is that of the adaptive model, of another type."""
    settings = {"OUT": str(tmp_path / "out"), "MAX_STEPS": "2", "NUM_GPUS": "0", "HIDDEN_SIZE": "8", "NUM_LEVELS": "4"}
    settings |= {"SEQUENCE_LENGTH": "32", "META_UNCERTAINTY_THRESHOLD": "1 2", "DATA": "bundled", "LR": "1e-3"}
    small = ["--max_train_samples", 16, "--max_eval_samples", 2, "--cache_dir", cache_dir, "--carry_state"]
    done = run_script("train_baseline.sh", *small, **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Run gru_byte_L32_B0k" in done.stdout and "bits_per_byte" in done.stdout
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert (config.model_type, config.num_levels, config.carry_state) == ("gru_byte", 4, True)
    assert "WikiText" not in done.stdout


def test_run_adaptive(tmp_path):
    """The arguments that it starts train.py with: the published ones, what is set in front, and those behind."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    path = f"{tmp_path}:{environment()['PATH']}"
    settings = {"PATH": path, "OUT": str(tmp_path / "out"), "NUM_GPUS": "0"}
    done = run_command("bash", "run/train_adaptive.sh", "--carry_state", **settings)
    assert done.returncode == 0 and done.stdout.startswith("Run adaptive_byte_L128_B1k -> "), done.stderr
    command = done.stdout.splitlines()[1].split()
    assert command[:2] == ["train.py", "--use_cpu"] and command[-1] == "--carry_state"
    parser = HfArgumentParser(training_family("adaptive_byte").argument_groups)
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(
        [argument for argument in command[1:] if argument not in ("--model_type", "adaptive_byte")]
    )
    assert model_args == AdaptiveByteArguments(carry_state=True) and data_args == DataTrainingArguments(block_size=128)
    assert (training_args.learning_rate, training_args.weight_decay, training_args.max_steps) == (3e-4, 1e-2, 10_000)
    settings |= {"DATA": "book.txt", "BATCH_SIZE": "64", "ENTROPY_FLOOR": "0.5", "THRESHOLD": "0.3"}
    done = run_command("bash", "run/train_adaptive.sh", **settings)
    for part in ("Run adaptive_byte_L128_B8k", "--train_file book.txt", "--entropy_floor 0.5", "--threshold 0.3"):
        assert part in done.stdout
    refused = run_command("bash", "run/train_adaptive.sh", **settings | {"NUM_GPUS": "3"})
    assert refused.returncode == 1 and "BATCH_SIZE=64 must be a multiple of the GPUs, 3." in refused.stderr

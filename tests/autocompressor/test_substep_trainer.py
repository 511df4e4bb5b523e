"""SubstepTrainer against plain loops: gradients, accumulation, processes, resumption, logs and evaluation.

Run by torchrun, this file is the worker of `test_two_processes_equal_one`.
"""

import copy
import functools
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from modeling_testing import run_on_two_processes
from test_autocompressor_parity import GRADIENTS, TENSORS, VALUES, cases, load_model, tensors
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import LlamaForCausalLM, OPTForCausalLM, Trainer, TrainerCallback, set_seed

from args import TrainingArguments
from auto_compressor import (
    LlamaAutoCompressorConfig,
    LlamaAutoCompressorModel,
    OPTAutoCompressorConfig,
    OPTAutoCompressorModel,
)
from data import DataCollator
from substep_trainer import SubstepTrainer


EXACT = {"rtol": 1e-6, "atol": 1e-6}
COMMON = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "opt": (
        OPTAutoCompressorModel,
        OPTAutoCompressorConfig,
        {"ffn_dim": 24, "word_embed_proj_dim": 8, "max_position_embeddings": 40, "dropout": 0.0, "pad_token_id": 1},
    ),
    "llama": (
        LlamaAutoCompressorModel,
        LlamaAutoCompressorConfig,
        {"intermediate_size": 24, "num_key_value_heads": 1},
    ),
}
families = pytest.mark.parametrize("family", FAMILIES)


def make_model(family="llama", **kwargs):
    """A tiny model in which no two weights are alike."""
    model_class, config_class, sizes = FAMILIES[family]
    set_seed(0)
    model = model_class(config_class(**COMMON | sizes | {"summary_length": 3} | kwargs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def make_rows(count, length, padded=(), seed=1):
    """Rows of random tokens; every third has a prompt without labels. `padded`: tokens of padding, row by row."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, input_ids in enumerate(torch.randint(3, 64, (count, length), generator=generator)):
        attention_mask, labels = torch.ones_like(input_ids), input_ids.clone()
        labels[: length // 3 if index % 3 == 2 else 0] = -100
        if padded:
            padding = length - padded[index % len(padded)]
            attention_mask[padding:], labels[padding:] = 0, -100
        rows.append({"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels})
    return rows


class Recorder(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def make_trainer(
    model, rows, folder, trainer_class=SubstepTrainer, eval_dataset=None, callbacks=(), teacher=None, **kwargs
):
    defaults = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **defaults | kwargs
    )
    return trainer_class(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=eval_dataset,
        data_collator=DataCollator(1),
        callbacks=list(callbacks),
        **({} if teacher is None else {"teacher": teacher}),
    )


def train(*args, **kwargs):
    """Returns the trainer after training, and the gradients of its steps."""
    recorder = Recorder()
    trainer = make_trainer(*args, callbacks=[recorder], **kwargs)
    trainer.train()
    return trainer, recorder.gradients


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def losses_of(trainer):
    """What was logged of the losses, step by step."""
    return [
        {name: value for name, value in logs.items() if name.endswith("loss") or name == "step"}
        for logs in trainer.state.log_history
        if "loss" in logs
    ]


def shifted(labels):
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def detached_loop(model, rows, segment_lengths, substeps):
    """Gradients and substep losses of one step over all rows by a plain loop of forward and backward passes."""
    model = copy.deepcopy(model).train()
    batch = DataCollator(1)(rows)
    targets, softprompt, losses = shifted(batch["labels"]), None, []
    num_targets = (targets != -100).sum()
    length = sum(segment_lengths)
    for start in range(0, substeps * length, length):
        part = slice(start, start + length)
        outputs = model(
            input_ids=batch["input_ids"][:, part],
            attention_mask=batch["attention_mask"][:, part],
            segment_lengths=segment_lengths,
            softprompt=softprompt,
            output_softprompt=True,
        )
        logits = outputs.logits.flatten(0, 1)
        nll = F.cross_entropy(logits, targets[:, part].flatten(), ignore_index=-100, reduction="sum")
        loss = nll / (num_targets / substeps)
        loss.backward()
        softprompt = outputs.softprompt.detach()
        losses.append(loss.item())
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, losses


# Gradients


@pytest.mark.parametrize("accumulate_summary", [True, False], ids=["accumulate", "rmt"])
@pytest.mark.parametrize("substeps", [1, 2, 3])
@families
def test_gradients_equal_a_detached_loop(family, substeps, accumulate_summary, tmp_path):
    model, segments = make_model(family, accumulate_summary=accumulate_summary), [5, 3]
    rows = make_rows(4, 8 * substeps, padded=[0, 3, 5])
    expected, losses = detached_loop(model, rows, segments, substeps)
    # Micro-batches of one row: the softprompt of one must not reach the next.
    trainer, (gradients,) = train(
        model,
        rows,
        tmp_path,
        segment_lengths=segments,
        training_substeps=substeps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    assert_close(gradients, expected, **EXACT)
    (logged,) = losses_of(trainer)
    assert_close([logged[f"substep_{index}_loss"] for index in range(substeps)], losses, **EXACT)
    assert logged["loss"] == pytest.approx(sum(losses) / substeps, abs=1e-6)
    assert trainer.carried == {}


@pytest.mark.parametrize("checkpointing", ["segment_gradient_checkpointing", "gradient_checkpointing"])
@families
def test_checkpointing_leaves_the_gradients_alone(family, checkpointing, tmp_path):
    rows, segments = make_rows(4, 16, padded=[0, 3]), [5, 3]
    expected, _ = detached_loop(make_model(family), rows, segments, 2)
    model = make_model(family, segment_gradient_checkpointing=checkpointing.startswith("segment"))
    settings = {"segment_lengths": segments, "training_substeps": 2, checkpointing: True}
    _, (gradients,) = train(model, rows, tmp_path, **settings)
    assert_close(gradients, expected, **EXACT)


@cases("substeps")
def test_published_substeps(case, tmp_path):
    model = load_model(case).train()
    (segments,) = {tuple(lengths) for lengths in case["segment_lengths"]}
    trainer = make_trainer(
        model,
        None,
        tmp_path,
        segment_lengths=list(segments),
        training_substeps=len(case["substep_slices"]),
        predict_substep_borders=False,
    )
    trainer.current_gradient_accumulation_steps = case["gradient_accumulation_steps"]
    inputs, expected = tensors(case["inputs"]), case["expected"]
    # The number of targets is what the published code does without.
    loss = trainer.training_step(model, inputs, num_items_in_batch=torch.tensor(1))
    assert_close(torch.stack([*trainer.sums.values()]), TENSORS[expected["substep_losses"]].flatten(), **VALUES)
    assert_close(loss, TENSORS[expected["mean_loss"]].squeeze(), **VALUES)
    for name, gradient in tensors(expected["grads"]).items():
        assert_close(model.get_parameter(name).grad, gradient, **GRADIENTS)


def test_published_substeps_lose_the_borders_only(tmp_path):
    """Where all substeps have the same number of targets, what differs are the targets at the borders."""
    model, rows = make_model(), make_rows(2, 16)
    for row in rows:
        row["labels"] = row["input_ids"].clone()
        row["labels"][[0, 8]] = -100
    _, expected = train(copy.deepcopy(model), rows, tmp_path, training_substeps=2)
    _, gradients = train(model, rows, tmp_path, training_substeps=2, predict_substep_borders=False)
    assert_close(gradients, expected, **EXACT)


@pytest.mark.parametrize("plain_class", [OPTForCausalLM, LlamaForCausalLM])
def test_one_substep_without_summary_is_the_plain_trainer(plain_class, tmp_path):
    family = "opt" if plain_class is OPTForCausalLM else "llama"
    model = make_model(family, summary_length=0)
    plain = plain_class(plain_class.config_class(**model.config.to_dict() | {"model_type": family}))
    plain.load_state_dict(model.state_dict())
    rows = make_rows(12, 20, padded=[0, 3, 9])
    common = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0, "gradient_accumulation_steps": 2}
    # Gradients of 0 (keys' biases) differ by rounding, which Adam would otherwise make as large as any gradient.
    common |= {"per_device_train_batch_size": 2, "max_steps": 3, "adam_epsilon": 1e-3}
    expected = make_trainer(plain, rows, tmp_path, trainer_class=Trainer, **common)
    expected.train()
    trainer, _ = train(model, rows, tmp_path, full_attention=True, **common)
    assert_close(weights_of(model), weights_of(plain), **EXACT)
    logged = [logs["loss"] for logs in losses_of(trainer)]
    assert len(logged) == 3
    assert_close(logged, [logs["loss"] for logs in losses_of(expected)], **EXACT)


@pytest.mark.parametrize(
    "settings, rows",
    [
        ({"training_substeps": 3, "segment_lengths": [5, 3]}, make_rows(16, 24, padded=[0, 9, 3, 17])),
        # The collator pads each micro-batch to its own width.
        (
            {"segments_per_substep": 1},
            [{"input_ids": row["input_ids"][: 10 + index]} for index, row in enumerate(make_rows(16, 30))],
        ),
    ],
    ids=["padded", "collated"],
)
@families
def test_accumulation_steps_do_not_matter(family, settings, rows, tmp_path):
    results = []
    for batch_size in (1, 4, 8):
        model = make_model(family)
        trainer, _ = train(
            model,
            rows,
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            **settings,
        )
        assert trainer.state.global_step == 2
        results.append((weights_of(model), losses_of(trainer)))
    for weights, losses in results[1:]:
        assert_close(weights, results[0][0], **EXACT)
        assert_close(losses, results[0][1], **EXACT)


# Labels, cropping and random segments


def test_substep_without_labels_contributes_nothing(tmp_path):
    model, rows = make_model(), make_rows(4, 16)
    silent = copy.deepcopy(rows)
    for row in silent:
        row["labels"][8:] = -100
    expected, losses = detached_loop(model, silent, [5, 3], 2)
    trainer, (gradients,) = train(
        model, silent, tmp_path, segment_lengths=[5, 3], training_substeps=2, predict_substep_borders=True
    )
    assert losses[1] == losses_of(trainer)[0]["substep_1_loss"] == 0
    assert_close(gradients, expected, **EXACT)


@pytest.mark.parametrize("predict_substep_borders", [True, False])
def test_batch_without_labels_changes_nothing(predict_substep_borders, tmp_path):
    model, rows = make_model(), make_rows(2, 16)
    for row in rows:
        row["labels"][:] = -100
    before = weights_of(model)
    trainer, _ = train(
        model,
        rows,
        tmp_path,
        training_substeps=2,
        predict_substep_borders=predict_substep_borders,
        logging_nan_inf_filter=False,
    )
    assert losses_of(trainer) == [{"step": 1, "loss": 0.0, "substep_0_loss": 0.0, "substep_1_loss": 0.0}]
    assert_close(weights_of(model), before, rtol=0, atol=0)


def test_segment_lengths_take_the_last_tokens(tmp_path):
    model, rows = make_model(), make_rows(8, 30, padded=[0, 4])
    cropped = [{name: values[-16:] for name, values in row.items()} for row in rows]
    expected, losses = detached_loop(model, cropped, [5, 3], 2)
    trainer, (gradients,) = train(model, rows, tmp_path, segment_lengths=[5, 3], training_substeps=2)
    assert_close(gradients, expected, **EXACT)
    assert losses_of(trainer)[0]["loss"] == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_random_segments_take_all_tokens(tmp_path):
    """Fixed lengths, which evaluation still uses, must not change the count of the targets of training."""
    rows, results = make_rows(16, 32), []
    for lengths in ([], [5, 3]):
        model = make_model().eval()
        trainer, _ = train(
            model,
            rows,
            tmp_path,
            eval_dataset=rows[:2],
            eval_strategy="steps",
            eval_steps=1,
            randomize_substeps=True,
            segment_lengths=lengths,
            training_substeps=2,
        )
        results.append((losses_of(trainer), weights_of(model)))
    assert len(results[0][0]) == 2
    assert results[0][0] == results[1][0]
    assert_close(results[0][1], results[1][1], rtol=0, atol=0)


def test_random_lengths_are_drawn_for_every_substep(tmp_path, monkeypatch):
    seen, forward = [], LlamaAutoCompressorModel.forward

    @functools.wraps(forward)
    def spy(self, *args, **kwargs):
        seen.append((kwargs["segment_lengths"], kwargs.get("softprompt")))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAutoCompressorModel, "forward", spy)
    settings = {"randomize_substeps": True, "training_substeps": 2, "segments_per_substep": 3}
    trainer, _ = train(make_model(), make_rows(8, 40), tmp_path, per_device_train_batch_size=1, **settings)
    lengths = [tuple(lengths) for lengths, _ in seen]
    assert all(len(part) == 3 and sum(part) == 20 and min(part) >= 2 for part in lengths)
    assert len(set(lengths)) > 8
    # A batch starts without summary vectors; its second substep starts with those of three segments.
    assert [softprompt if softprompt is None else softprompt.shape[1] for _, softprompt in seen] == [None, 9] * 8
    assert not any(softprompt.requires_grad for _, softprompt in seen[1::2])
    seen.clear()
    trainer.evaluate(make_rows(1, 40))
    assert [part for part, _ in seen] == [[6, 7, 7]] * 2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"segment_lengths": [20, 21]}, "`segment_lengths` .* take 41 tokens, a sequence has 40"),
        ({"segment_lengths": [7, 7], "training_substeps": 3}, "take 42 tokens, a sequence has 40"),
        ({"training_substeps": 0}, "`training_substeps` must be 1 or more, got 0"),
        ({"segments_per_substep": 0}, "`segments_per_substep` must be 1 or more, got 0"),
        ({"segment_lengths": [4, 0]}, "`segment_lengths` must be positive"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0"),
        ({"segments_per_substep": 21, "training_substeps": 2}, "segment"),
        ({"segments_per_substep": 14, "training_substeps": 2, "randomize_substeps": True}, "14 segments of at least"),
    ],
)
def test_bad_settings(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(make_model(), make_rows(2, 40), tmp_path, **settings)


# Logs and resumption


def test_logged_losses_are_means_since_the_last_log(tmp_path):
    rows, logged = make_rows(12, 16), {}
    for logging_steps in (1, 3):
        trainer, _ = train(
            make_model(),
            rows,
            tmp_path,
            training_substeps=2,
            logging_steps=logging_steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
        )
        logged[logging_steps] = losses_of(trainer)
    assert [logs["step"] for logs in logged[3]] == [3, 6]
    for index, logs in enumerate(logged[3]):
        steps = logged[1][3 * index : 3 * index + 3]
        for name in ("loss", "substep_0_loss", "substep_1_loss"):
            assert logs[name] == pytest.approx(sum(step[name] for step in steps) / 3, abs=1e-6)
        assert logs["loss"] == pytest.approx((logs["substep_0_loss"] + logs["substep_1_loss"]) / 2, abs=1e-6)


@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_resumed_run_equals_uninterrupted_run(step, tmp_path, uninterrupted_run):
    """Checkpoints in the middle of an epoch, at its end, and of the finished run."""
    weights, losses, settings, folder = uninterrupted_run
    set_seed(123)
    model = make_model("opt", dropout=0.2)
    trainer = make_trainer(model, make_rows(16, 32), tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert trainer.state.global_step == 8
    assert_close(weights_of(model), weights, rtol=0, atol=0)
    assert losses_of(trainer) == losses


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory):
    """Four epochs of 8 steps in all; evaluation, random lengths and dropout all move the random numbers."""
    folder = tmp_path_factory.mktemp("run")
    settings = {
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset": make_rows(2, 32),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "randomize_substeps": True,
        "training_substeps": 2,
    }
    model = make_model("opt", dropout=0.2)
    trainer, _ = train(model, make_rows(16, 32), folder, **settings)
    assert len(losses_of(trainer)) == 4
    return weights_of(model), losses_of(trainer), settings, folder


# Evaluation


@torch.no_grad()
def brute_force_sums(model, rows, substeps, borders=True, full_attention=False):
    """
    Sums [nll, correct, targets, vectors] for every (substep, segment): each row by itself, one forward call per
    segment.
    """
    ends = torch.tensor(sum(substeps, [])).cumsum(dim=0).tolist()
    substep_ends = torch.tensor([sum(segments) for segments in substeps]).cumsum(dim=0).tolist()
    sums = torch.zeros(len(ends), 4, dtype=torch.double)
    if not full_attention:
        # Nobody reads the summary of the last segment.
        sums[:-1, 3] = model.config.summary_length * len(rows)
    for row in rows:
        ids, mask, labels = (row[name][None, -ends[-1] :] for name in ("input_ids", "attention_mask", "labels"))
        logits, softprompt = [], None
        for start, end in zip([0, *ends], ends, strict=False):
            outputs = model(ids[:, start:end], mask[:, start:end], softprompt=softprompt, output_softprompt=True)
            logits.append(outputs.logits)
            softprompt = outputs.softprompt
        logits = model(ids, mask).logits[0] if full_attention else torch.cat(logits, dim=1)[0]
        for position in range(ends[-1] - 1):
            target = labels[0, position + 1].item()
            if target != -100 and (borders or position + 1 not in substep_ends):
                nll = -logits[position].double().log_softmax(dim=-1)[target]
                segment = sum(end <= position for end in ends)
                sums[segment] += torch.tensor([nll, logits[position].argmax() == target, 1, 0])
    return sums.view(len(substeps), -1, 4)


def expected_metrics(sums, num_rows):
    """The metrics by name, from the sums of `brute_force_sums`."""

    def metrics(prefix, part):
        nll, correct, tokens, vectors = part.view(-1, 4).sum(dim=0).tolist()
        values = {"perplexity": math.exp(nll / tokens), "accuracy": correct / tokens} if tokens else {}
        values |= {"tokens": int(tokens), "vectors": vectors / num_rows}
        return {prefix + name: value for name, value in values.items()}

    expected = metrics("", sums)
    expected["loss"] = math.log(expected["perplexity"])
    for substep, segments in enumerate(sums):
        expected |= metrics(f"substep_{substep}_", segments)
        for segment, part in enumerate(segments):
            expected |= metrics(f"substep_{substep}_segment_{segment}_", part)
    return expected


def without_speed(metrics, prefix="eval_"):
    timing = ("runtime", "per_second", "epoch", "model_preparation_time")
    return {name.removeprefix(prefix): value for name, value in metrics.items() if not name.endswith(timing)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"randomize_substeps": True},
        {"predict_substep_borders": False},
        {"full_attention": True},
        {"segment_lengths": [6, 1]},
        {"segment_lengths": [6, 1], "full_attention": True},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
@families
def test_evaluation_equals_brute_force(family, settings, tmp_path):
    """Also: rows in padded batches of 4, 4 and 1, and a last token without a target."""
    model = make_model(family).eval()
    rows = make_rows(9, 17, padded=[0, 2, 6])
    trainer = make_trainer(
        model, None, tmp_path, eval_dataset=rows, per_device_eval_batch_size=4, training_substeps=2, **settings
    )
    substeps = [[6, 1], [6, 1]] if "segment_lengths" in settings else [[4, 4], [4, 5]]
    borders, full_attention = settings.get("predict_substep_borders", True), settings.get("full_attention", False)
    sums = brute_force_sums(model, rows, substeps, borders, full_attention)
    metrics = trainer.evaluate()
    assert_close(without_speed(metrics), expected_metrics(sums, len(rows)), rtol=1e-5, atol=1e-6)
    assert without_speed(trainer.evaluate()) == without_speed(metrics)
    if settings.get("segment_lengths") == [6, 1]:
        assert metrics["eval_substep_1_segment_1_tokens"] == 0
        assert "eval_substep_1_segment_1_perplexity" not in metrics


def test_named_validation_sets(tmp_path):
    """Each under its own name, also in the middle of training, and random segments of training do not change them."""
    model, sets = make_model(), {"short": make_rows(3, 16), "long": make_rows(5, 24, seed=2)}
    trainer, _ = train(
        model,
        make_rows(16, 20),
        tmp_path,
        eval_dataset=sets,
        eval_strategy="steps",
        eval_steps=1,
        randomize_substeps=True,
        training_substeps=2,
        per_device_eval_batch_size=2,
    )
    logged = {}
    for logs in trainer.state.log_history:
        logged |= {name: value for name, value in logs.items() if logs["step"] == 2 and name.startswith("eval_")}
    metrics = trainer.evaluate()
    for name, substeps in {"short": [[4, 4]] * 2, "long": [[6, 6]] * 2}.items():
        expected = expected_metrics(brute_force_sums(model.eval(), sets[name], substeps), len(sets[name]))
        for found in (metrics, logged):
            found = {key: value for key, value in found.items() if key.startswith(f"eval_{name}_")}
            assert_close(without_speed(found, f"eval_{name}_"), expected, rtol=1e-5, atol=1e-6)


def test_validation_set_without_targets(tmp_path):
    rows = make_rows(2, 16)
    for row in rows:
        row["labels"][:] = -100
    metrics = without_speed(make_trainer(make_model(), None, tmp_path, eval_dataset=rows).evaluate())
    assert metrics["tokens"] == metrics["loss"] == 0
    assert "perplexity" not in metrics


# Processes


class ReductionCounter(TrainerCallback):
    """Counts, step by step, the reductions of gradients between the processes."""

    def __init__(self):
        self.counts = []

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:
            self.trainer.model_wrapped.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):
        self.counts[-1] += 1
        return allreduce_hook(None, bucket)

    def on_step_begin(self, args, state, control, **kwargs):
        self.counts.append(0)


def train_and_evaluate(folder, world_size, segments_per_substep):
    """Two steps of 8 rows and three substeps each, in two micro-batches; then evaluation, all on `world_size`."""
    model, counter = make_model("opt"), ReductionCounter()
    trainer = make_trainer(
        model,
        make_rows(16, 24, padded=[0, 9, 3, 17, 1]),
        folder,
        callbacks=[counter],
        eval_dataset={"seven": make_rows(7, 24), "three": make_rows(3, 24, padded=[0, 9], seed=3)},
        per_device_train_batch_size=4 // world_size,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        training_substeps=3,
        segments_per_substep=segments_per_substep,
    )
    counter.trainer = trainer
    trainer.train()
    metrics = without_speed(trainer.evaluate())
    metrics = {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second"))}
    return {
        "weights": weights_of(model),
        "losses": losses_of(trainer),
        "metrics": metrics,
        "reductions": counter.counts,
    }


def test_two_processes_equal_one(tmp_path):
    """The gradients are reduced once per step; with one segment, the last substep does not use the summary."""
    run_on_two_processes(__file__, tmp_path)
    for segments in (1, 2):
        expected = train_and_evaluate(tmp_path, 1, segments)
        for rank in (0, 1):
            actual = torch.load(tmp_path / f"{segments}_{rank}.pt")
            assert_close(actual["weights"], expected["weights"], **EXACT)
            assert_close(actual["losses"], expected["losses"], **EXACT)
            assert_close(actual["metrics"], expected["metrics"], rtol=1e-5, atol=1e-6)
            assert actual["reductions"] == [1, 1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for segments in (1, 2):
        results = train_and_evaluate(sys.argv[1], 2, segments)
        torch.save(results, Path(sys.argv[1]) / f"{segments}_{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

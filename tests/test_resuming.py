"""Which checkpoint a run goes on from, with which settings, and what it reads."""

import json
import re
import shutil

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from auto_compressor import ByteTokenizer, LlamaAutoCompressorModel
from auto_compressor.autocompressor.adapters import save_adapters
from auto_compressor.autocompressor.arguments import ModelArguments
from auto_compressor.autocompressor.family import lora_config
from auto_compressor.training.arguments import DataTrainingArguments
from auto_compressor.training.checkpoints import last_whole_checkpoint
from auto_compressor.training.data import load_datasets


TINY = "--config_name tiny --summary_length 4 --block_size 32 --do_train --save_steps 1 --max_steps".split()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("data", [b"one\r\ntwo\r\n" * 20, b"one\rtwo\r" * 20, "caf\u00e9\n".encode("latin-1") * 40])
def test_byte_models_read_the_bytes(data, streaming, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    data_args = DataTrainingArguments(
        train_file=[str(tmp_path / "a.txt")], validation_split_percentage=0, streaming=streaming
    )
    rows, _ = load_datasets(data_args, ByteTokenizer(), len(data), cache_dir=str(tmp_path / "cache"))
    assert [bytes(row["input_ids"]) for row in rows] == [data]


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize("kind", ["autocompressor", "adaptive_byte", "hierarchical_autoencoder"])
def test_ids_of_another_tokenizer_are_refused(kind, streaming, main, tmp_path):
    Dataset.from_dict({"input_ids": [[5] * 30 + [3000, 7]] * 20}).save_to_disk(tmp_path / "other")
    arguments = ["--model_type", kind, "--do_train", "--max_steps", 1, "--streaming", streaming]
    arguments += TINY[:4] if kind == "autocompressor" else []
    with pytest.raises(SystemExit, match=r"other.* vocabulary of the model, \d+ ids, .* 3000"):
        main(*arguments, "--preprocessed_train_datasets", tmp_path / "other")


def test_other_settings_do_not_go_on(main, tmp_path):
    main(*TINY, 1)
    again = [*TINY, 2, "--resume_from_checkpoint", "true"]
    with pytest.raises(SystemExit, match="weight_decay 0.0, now 0.5"):
        main(*again, "--weight_decay", 0.5)
    assert (main(*again) / "checkpoint-2").exists()


@pytest.mark.parametrize("minutes, steps", [(1e-9, [1, 2, 3]), (1000, [3])])
def test_checkpoints_by_time(minutes, steps, main, capsys):
    """And what is shown of a long run: tokens per second, and the time that is left."""
    arguments = ["--save_steps", 100, "--save_minutes", minutes, "--include_num_input_tokens_seen", "true"]
    output = main(*TINY, 3, *arguments)
    assert sorted(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")) == steps
    assert re.search(r"step 3/3  loss .*  tokens/s [\d,]+  left 0:00:00", capsys.readouterr().out)


def test_a_run_that_goes_on_from_a_checkpoint_by_time_ends_as_a_whole_one(main, tmp_path):
    arguments = [*TINY, 4, "--save_steps", 100, "--save_minutes", 1e-9]
    whole, killed = main(*arguments), tmp_path / "killed"
    shutil.copytree(whole / "checkpoint-2", killed / "checkpoint-2")
    shutil.copy(whole / "run_settings.json", killed)
    main(*arguments, "--resume_from_checkpoint", "true", output_dir=killed)
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert_close(found, expected, rtol=0, atol=0)


def test_minutes_between_checkpoints_are_above_0(main):
    with pytest.raises(SystemExit, match="`save_minutes` must be above 0, got 0.0"):
        main(*TINY, 1, "--save_minutes", 0)


def test_another_run_does_not_begin_among_checkpoints(main, tmp_path):
    """Killed before its first one, it would go on from those of the other run."""
    main(*TINY, 1)
    with pytest.raises(SystemExit, match="has checkpoints of a run with other settings"):
        main(*TINY, 1, "--weight_decay", 0.5)
    (tmp_path / "out" / "checkpoint-1").rename(tmp_path / "elsewhere")
    main(*TINY, 1, "--weight_decay", 0.5)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_the_newest_readable_checkpoint(name, main):
    output = main(*TINY, 2)
    path = output / "checkpoint-2" / name
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert last_whole_checkpoint(output) == str(output / "checkpoint-1")
    path.unlink()
    assert last_whole_checkpoint(output) == str(output / "checkpoint-1")
    path.write_bytes(whole)
    assert last_whole_checkpoint(output) == str(output / "checkpoint-2")


@pytest.mark.parametrize("change", [{"best_model_checkpoint": [0]}, {"epoch": "a"}, {"log_history": {}}, {"more": 1}])
def test_a_state_that_the_trainer_cannot_read(change, main):
    output = main(*TINY, 2)
    path = output / "checkpoint-2" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert last_whole_checkpoint(output) == str(output / "checkpoint-1")
    with pytest.raises(SystemExit, match="cannot be resumed from: trainer_state.json is missing or damaged"):
        main(*TINY, 3, "--resume_from_checkpoint", output / "checkpoint-2")


def test_what_safetensors_left_when_a_run_was_killed_goes_at_the_next(main):
    output = main(*TINY, 1)
    for folder in (output, output / "checkpoint-1"):
        for name in (".tmpnzHb6v", ".tmpnot", "notes.tmp"):
            (folder / name).touch()
    main(*TINY, 2, "--resume_from_checkpoint", "true")
    left = {str(path.relative_to(output)) for path in output.rglob("*tmp*")}
    assert left == {".tmpnot", "notes.tmp", "checkpoint-1/.tmpnot", "checkpoint-1/notes.tmp"}


def adapted_model(folder, targets, tied, **fields):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, tie_word_embeddings=tied
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    model = LlamaAutoCompressorModel.from_pretrained(folder / "base", summary_length=4)
    own = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, modules_to_save=["embed_summary"], **fields)
    adapted = get_peft_model(model, own)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "embed_summary.modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapters(adapted, type(adapted).save_pretrained, str(folder / "adapters"))
    model.config.save_pretrained(folder / "adapters")
    return adapted.eval()


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
@pytest.mark.parametrize("loader", [LlamaAutoCompressorModel, AutoModelForCausalLM, AutoPeftModelForCausalLM])
def test_every_loader_gives_the_trained_model(loader, targets, tmp_path):
    adapted, ids = adapted_model(tmp_path, targets, tied=True), torch.randint(3, 64, (2, 24))
    loaded = loader.from_pretrained(tmp_path / "adapters").eval()
    expected = adapted(input_ids=ids, segment_lengths=[12, 12]).logits
    torch.testing.assert_close(loaded(input_ids=ids, segment_lengths=[12, 12]).logits, expected, rtol=0, atol=1e-5)


def test_adapters_of_merged_adapters(tmp_path):
    """Their base is the model with the first adapters merged, and not the one below."""
    adapted_model(tmp_path, ["q_proj"], tied=True)
    merged, ids = LlamaAutoCompressorModel.from_pretrained(tmp_path / "adapters"), torch.randint(3, 64, (2, 24))
    assert merged.name_or_path == merged.config.name_or_path == str(tmp_path / "adapters")
    second = get_peft_model(merged, LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"])).eval()
    save_adapters(second, type(second).save_pretrained, str(tmp_path / "second"))
    loaded = LlamaAutoCompressorModel.from_pretrained(tmp_path / "second").eval()
    expected = second(input_ids=ids, segment_lengths=[12, 12]).logits
    torch.testing.assert_close(loaded(input_ids=ids, segment_lengths=[12, 12]).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "targets, fields",
    [
        (".*(q_proj|lm_head)", {}),
        (".*(q_proj|embed_tokens)", {}),
        (["q_proj"], {"target_parameters": ["lm_head.weight"]}),
        (["q_proj"], {"target_parameters": ["embed_tokens.weight"]}),
        (["q_proj", "embed_tokens"], {"ensure_weight_tying": True}),
        (["q_proj"], {"trainable_token_indices": [5, 6]}),
    ],
)
def test_adapters_of_tied_embeddings_are_merged_whatever_names_them(targets, fields, tmp_path):
    adapted, ids = adapted_model(tmp_path, targets, tied=True, **fields), torch.randint(3, 64, (2, 24))
    loaded = LlamaAutoCompressorModel.from_pretrained(tmp_path / "adapters").eval()
    expected = adapted(input_ids=ids, segment_lengths=[12, 12]).logits
    torch.testing.assert_close(loaded(input_ids=ids, segment_lengths=[12, 12]).logits, expected, rtol=0, atol=1e-5)
    assert loaded.config.tie_word_embeddings == ("trainable_token_indices" in fields)


@pytest.mark.parametrize("field", ["lora_target_modules", "lora_modules_to_save"])
def test_tied_embeddings_get_no_adapters(field, tmp_path):
    adapted_model(tmp_path, ["q_proj"], tied=True)
    model = LlamaAutoCompressorModel.from_pretrained(tmp_path / "base", summary_length=4)
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(ValueError, match=f"--{field} must not name {name}"):
            lora_config(model, ModelArguments(**{field: [name]}))


def test_all_linear_layers_get_adapters(tmp_path):
    """But not the head, tied or not."""
    adapted_model(tmp_path, ["q_proj"], tied=True)
    model = LlamaAutoCompressorModel.from_pretrained(tmp_path / "base", summary_length=4)
    config = lora_config(model, ModelArguments(lora_target_modules=["all-linear"]))
    get_peft_model(model, config)
    names = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_modules() if "lora_A" in name}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_resumed_stream_goes_on(main, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("In the beginning there was a king in the land.\n" * 40)
    arguments = [*TINY, 12, "--train_file", text, "--streaming", "true", "--resume_from_checkpoint", "true"]
    whole = main(*arguments, output_dir=tmp_path / "whole")
    shutil.copytree(whole / "checkpoint-11", tmp_path / "killed" / "checkpoint-11")
    killed = main(*arguments, output_dir=tmp_path / "killed")
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()

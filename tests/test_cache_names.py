"""A cache has one name inside the package and two outside: models, outputs and `generate` take either, silently."""

import ast
import importlib
import inspect
import pkgutil
import warnings
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput, generic

import auto_compressor
from auto_compressor import (
    ActivationCompressor,
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    GRUByteConfig,
    GRUByteForCausalLM,
    LlamaAutoCompressorConfig,
    LlamaAutoCompressorModel,
    MergingCache,
)
from auto_compressor.cache_names import (
    INSTALLED_NAME,
    NAME,
    OLD_NAME,
    CacheOutput,
    as_cache,
    cache_in,
    cache_of,
    renamed,
    takes_cache,
)
from auto_compressor.hierarchical_autoencoder.modeling_hierarchical_autoencoder import CodeSequenceTransformer


OTHER_NAME = OLD_NAME if INSTALLED_NAME == NAME else NAME
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
both_names = pytest.mark.parametrize("name", [NAME, OLD_NAME])
PACKAGE = Path(auto_compressor.__file__).parent


def package_classes() -> list[type]:
    """Every class that a module of the package defines."""
    names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "auto_compressor.")]
    modules = [importlib.import_module(name) for name in names]
    found = {cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)}
    return sorted((cls for cls in found if cls.__module__ in names), key=lambda cls: cls.__qualname__)


CLASSES = package_classes()


def make_llama():
    return LlamaAutoCompressorModel(LlamaAutoCompressorConfig(vocab_size=40, summary_length=2, **SIZES)).eval()


def make_adaptive():
    return AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=16)).eval()


def make_gru():
    return GRUByteForCausalLM(GRUByteConfig(hidden_size=16)).eval()


models = pytest.mark.parametrize("make", [make_llama, make_adaptive, make_gru])


@pytest.fixture(autouse=True)
def no_warnings(monkeypatch):
    """Neither by Python nor by the log, where transformers warns of the old name of an output."""
    told = []
    monkeypatch.setattr(generic.logger, "warning_once", told.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield
    assert told == []


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: "-".join(path.relative_to(PACKAGE).parts)
)
def test_no_module_uses_the_old_name(path):
    """As a parameter, `past_key_values=None, **kwargs` would swallow the cache that 5.24 passes as `cache`."""
    if path.stem == "cache_names":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert OLD_NAME not in (getattr(node, "arg", None), getattr(node, "attr", None), getattr(node, "id", None))


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: "-".join(path.relative_to(PACKAGE).parts)
)
def test_models_that_may_be_of_transformers_are_called_by_the_installed_name(path):
    """Their `cache` is `past_key_values` up to 5.23: `**as_cache(cache)`, and `cache_of(output)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = getattr(node, "func", None)
        name = getattr(called, "attr", getattr(called, "id", None))
        if name in ("model", "base_model", "generate"):
            assert "cache" not in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


def test_the_walk_finds_what_it_is_for():
    names = {cls.__name__ for cls in CLASSES}
    assert {"LlamaAutoCompressorModel", "AutoCompressorOutput", "ByteLMOutput", "SlidingWindowAttention"} <= names


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, ModelOutput) and is_dataclass(cls)])
def test_outputs_have_no_field_of_the_old_name(cls):
    names = {field.name for field in fields(cls)}
    assert OLD_NAME not in names
    assert NAME not in names or any(
        base.__name__ == "CacheOutput" for base in cls.__mro__
    )  # every family has its copy


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if hasattr(cls, "forward")])
def test_forwards_show_the_installed_name(cls):
    for method in (cls.forward, getattr(cls, "prepare_inputs_for_generation", None)):
        if method is not None:
            assert OTHER_NAME not in inspect.signature(method).parameters


@pytest.mark.parametrize("cls", [LlamaAutoCompressorModel, AdaptiveByteForCausalLM, GRUByteForCausalLM])
def test_language_models_take_a_cache(cls):
    assert INSTALLED_NAME in inspect.signature(cls.forward).parameters
    assert INSTALLED_NAME in inspect.signature(CodeSequenceTransformer.forward).parameters


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, PreTrainedModel)])
def test_configs_keep_caches_from_being_gathered(cls):
    """The Trainer reads this list in evaluation; before 5.24 it asks for the old name, then for the new one."""
    ignored = getattr(getattr(cls, "config_class", None), "keys_to_ignore_at_inference", [])
    assert INSTALLED_NAME in ignored or OTHER_NAME not in ignored


@both_names
@models
@torch.no_grad()
def test_a_model_takes_and_returns_both(make, name):
    model, ids = make(), torch.randint(3, 40, (2, 9))
    first = model(ids[:, :5], use_cache=True)
    assert name in first and first[name] is getattr(first, name) is first.get(name) is cache_of(first)
    assert_close(model(ids[:, 5:], **{name: first[name]}).logits, model(ids).logits[:, 5:])


@both_names
@models
def test_generate_takes_both(make, name):
    model, ids = make(), torch.randint(3, 40, (1, 9))
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        cache = cache_of(model(ids[:, :5], use_cache=True))
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, **{name: cache}), expected)


@both_names
def test_compress_takes_both(name):
    base = LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES)).eval()
    compressor = ActivationCompressor.from_base(base, num_sinks=1, recent_window=4).eval()
    ids, cache = torch.randint(3, 40, (1, 96)), MergingCache(base.config)
    compressor.compress(base, ids[:, :48], **{name: cache})
    assert compressor.compress(base, ids[:, 48:], **{name: cache}) is cache and cache.get_seq_length() == 96


@both_names
def test_a_base_generates_with_both(name):
    base = LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES)).eval()
    compressor, ids = ActivationCompressor.from_base(base), torch.randint(3, 40, (1, 20))
    with compressor.attach(base):
        cache = compressor.compress(base, ids[:, :-1])
        found = base.generate(ids, max_new_tokens=3, do_sample=False, **{name: cache})
    assert torch.equal(found, base.generate(ids, max_new_tokens=3, do_sample=False))


def test_the_old_name_is_written_through():
    @dataclass
    class Output(CacheOutput):
        logits: torch.Tensor | None = None
        cache: object | None = None

    output = Output(logits=torch.zeros(1), cache="first")
    output.past_key_values = "second"
    assert output.cache == output[OLD_NAME] == output.to_tuple()[1] == "second"
    assert "hidden_states" not in output and output.get("hidden_states", 3) == 3


def test_the_new_name_wins():
    assert cache_in({NAME: "new", OLD_NAME: "old"}) == "new"
    assert cache_in({NAME: None, OLD_NAME: "old"}) == "old"
    assert cache_in({}) is None
    assert renamed({OLD_NAME: "old", "a": 1}) == as_cache("old") | {"a": 1}
    assert renamed({"a": 1}) == {"a": 1}


def test_a_decorated_function_gets_its_cache_by_position_too():
    @takes_cache
    def forward(ids, cache=None, **kwargs):
        return ids, cache, kwargs

    assert forward(1, 2) == forward(1, cache=2) == forward(1, past_key_values=2) == (1, 2, {})
    assert list(inspect.signature(forward).parameters) == ["ids", INSTALLED_NAME, "kwargs"]

"""`import auto_compressor` is light, and the Auto classes know its models in whatever order things are imported."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import auto_compressor
from auto_compressor.cli.main import COMMANDS
from auto_compressor.moved_modules import MOVED, SPLIT


MOVED_NAMES = [old for names in MOVED.values() for old in names]
ROOT = Path(__file__).parents[1]
NAMES = """
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
"""
USE = f"""
import sys, transformers
{NAMES}
config = transformers.AutoConfig.for_model("llama_autocompressor", **sizes, summary_length=2)
print(type(transformers.AutoModelForCausalLM.from_config(config)).__name__)
from auto_compressor.import_hook import AfterTransformers
print(any(isinstance(finder, AfterTransformers) for finder in sys.meta_path))
"""
LOADED = """
import sys
print([name for name in ("torch", "transformers", "rich") if name in sys.modules])
"""


# Runs the programs that it reads in processes forked from one that has imported what transformers imports.
FORK = """
import gc, json, os, sys, traceback
import datasets, scipy.optimize, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
assert not {"auto_compressor", "transformers"} & set(sys.modules)
gc.freeze()
for line in sys.stdin:
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(writing, 1)
        try:
            exec(json.loads(line), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(0)
    os.close(writing)
    with open(reading) as printed:
        text = printed.read()
    os.wait()
    print(json.dumps(text), flush=True)
"""


def new_environment():
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def output_of(code):
    """The lines that a new process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=new_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def output_of_fork():
    """The lines that a program prints in a new process that has imported torch, which takes most of the time."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORK], cwd=ROOT, env=new_environment(), **pipes) as process:

        def output_of_fork(code):
            print(json.dumps(code), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline()).splitlines()

        yield output_of_fork


# What is loaded


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["bad"], []])
def test_the_command_loads_nothing_large(arguments):
    code = f"""
from auto_compressor.cli.main import main
try:
    main({arguments})
except SystemExit:
    pass
{LOADED}"""
    assert output_of(code)[-1] == "[]"


def test_help_of_every_command_loads_nothing_large():
    names = [module.NAME for module in COMMANDS if module.NAME != "train"]  # its help lists arguments of transformers
    code = f"""
from auto_compressor.cli.main import main
for name in {names}:
    try:
        main([name, "--help"])
    except SystemExit:
        pass
{LOADED}"""
    assert output_of(code)[-1] == "[]"


@pytest.mark.parametrize("code", ["import auto_compressor", "import auto_compressor; dir(auto_compressor)"])
def test_the_package_loads_nothing_large(code):
    assert output_of(code + LOADED) == ["[]"]


def test_searching_and_missing_names_load_nothing():
    code = """
import auto_compressor, importlib.util
names = ("transformers", "auto_compressor.autocompressor.losses")
print(*(importlib.util.find_spec(name).name for name in names))
print(importlib.util.find_spec("auto_compressor.missing"), hasattr(auto_compressor, "missing"))
"""
    assert output_of(code + LOADED) == ["transformers auto_compressor.autocompressor.losses", "None False", "[]"]


# Orders of imports

ORDERS = {
    "package first": "import auto_compressor; import transformers",
    "transformers first": "from transformers import AutoModel; import auto_compressor",
    "reloaded after": "import auto_compressor, transformers, importlib; importlib.reload(auto_compressor)",
    "a model in between": "import auto_compressor, transformers.models.llama.modeling_llama",
    "layers in between": "import auto_compressor; import transformers.modeling_layers",
    "an attribute": "import auto_compressor; auto_compressor.POLICIES",
    "a module as attribute": "import auto_compressor; auto_compressor.softprompts.save_softprompt",
    "all names": "from auto_compressor import *",
    "a cache": "from auto_compressor.autocompressor.softprompt_cache import SoftpromptCache",
    "no model at all": "import auto_compressor.files.bundled, auto_compressor.cli.main, auto_compressor.assets",
    "the registration": "import auto_compressor.registration",
    "bases": "import auto_compressor.autocompressor.bases",
    "the trainer": "import auto_compressor.train",
    "peft in between": "import auto_compressor; import peft",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_models_are_registered_after(order, output_of_fork):
    assert output_of_fork(order + USE) == ["LlamaAutoCompressorModel", "False"]


def test_names_of_transformers_are_there_at_once(output_of_fork):
    """The README's order: a name of transformers, bound in the import that ends with the registration."""
    code = f"""
import auto_compressor
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers import AutoModelForCausalLM
from auto_compressor import LlamaAutoCompressorConfig
{NAMES}
print(type(AutoModelForCausalLM.from_config(LlamaAutoCompressorConfig(**sizes, summary_length=2))).__name__)
"""
    assert output_of_fork(code) == ["LlamaAutoCompressorModel"]


def test_pickled_classes_register(output_of_fork):
    """Another process reads a class by its module and name, those of before the module was moved."""
    pickled = b"cauto_compressor.softprompt_cache" + bytes([10]) + b"SoftpromptCache" + bytes([10]) + b"."
    code = f"""
import pickle
print(pickle.loads({pickled!r}))
"""
    lines = output_of_fork(code + USE)
    assert lines == [
        "<class 'auto_compressor.autocompressor.softprompt_cache.SoftpromptCache'>",
        "LlamaAutoCompressorModel",
        "False",
    ]


def test_threads(output_of_fork):
    code = """
import threading, auto_compressor, importlib
names = ["transformers"]
names += [f"auto_compressor.{name}" for name in ("autocompressor.losses", "autocompressor.segments", "files.bundled")]
threads = [threading.Thread(target=importlib.import_module, args=[name]) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert output_of_fork(code + USE) == ["LlamaAutoCompressorModel", "False"]


def test_a_module_that_fails(tmp_path, output_of_fork):
    """Its error goes out as it is, and the next import of the package registers."""
    (tmp_path / "failing.py").write_text("import transformers\nraise OSError('as it is')\n")
    code = f"""
import auto_compressor
auto_compressor.__path__.append({str(tmp_path)!r})
try:
    import auto_compressor.failing
except OSError as error:
    print(error)
import auto_compressor.files.bundled
"""
    assert output_of_fork(code + USE) == ["as it is", "LlamaAutoCompressorModel", "False"]


def test_transformers_that_fails(tmp_path, output_of_fork):
    """The package waits for a transformers that can be loaded."""
    (tmp_path / "transformers.py").write_text("raise ImportError('broken')\n")
    code = f"""
import sys, auto_compressor
sys.path.insert(0, {str(tmp_path)!r})
try:
    import transformers
except ImportError as error:
    print(error)
sys.path.remove({str(tmp_path)!r})
"""
    assert output_of_fork(code + USE) == ["broken", "LlamaAutoCompressorModel", "False"]


def test_the_loaders_of_modules_stay_usable(output_of_fork):
    code = """
import auto_compressor, inspect, importlib
import auto_compressor.files.bundled as bundled, transformers
print(importlib.reload(bundled) is bundled, "BUNDLED" in inspect.getsource(bundled), type(bundled.__loader__).__name__)
"""
    assert output_of_fork(code) == ["True True SourceFileLoader"]


# Public names


def test_public_names():
    assert len(auto_compressor.__all__) == len(set(auto_compressor.__all__)) >= 49
    assert set(auto_compressor.__all__) <= set(dir(auto_compressor))
    for name in auto_compressor.__all__:
        module = importlib.import_module(f"auto_compressor.{auto_compressor.MODULES[name]}")
        assert getattr(auto_compressor, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="module 'auto_compressor' has no attribute 'missing'"):
        auto_compressor.missing  # noqa: B018


# Names of before


@pytest.mark.parametrize("old", MOVED_NAMES)
def test_modules_of_before_are_those_of_today(old):
    assert importlib.import_module(f"auto_compressor.{old}").__name__.startswith("auto_compressor.")


SPLIT_NAMES = {
    "bases": ["load_autocompressor", "load_base_model", "resolve_base", "OFFLINE_BASES"],
    "code_tokens": ["pack_segments", "token_losses"],
    "convert": ["convert_checkpoint", "read_checkpoint"],
    "patching": ["cumulative_borders", "gather_patches", "broadcast_patches"],
    "train": ["main", "lora_config", "load_hierarchical", "load_byte_lm", "load_compressor", "load_continuous_text"],
    "training.arguments": ["OptimArguments", "ModelArguments", "TrainingArguments", "AdaptiveByteArguments"],
    "vector_quantizer": ["VectorQuantizer", "RunningNorm", "masked_mean"],
}


@pytest.mark.parametrize("old", SPLIT)
def test_modules_that_were_split_have_all_their_names(old):
    module = importlib.import_module(f"auto_compressor.{old}")
    assert all(getattr(module, name) for name in SPLIT_NAMES[old])
    with pytest.raises(AttributeError, match=f"module 'auto_compressor.{old}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018

"""The tests that every model family must pass, and the tiny models they run on.

A family subclasses [`ModelTests`] or [`CausalLMTests`], names its classes, and gives a tiny config and its inputs.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from train_testing import run_program
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    OPTForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from auto_compressor import (
    AutoCompressorOutput,
    GemmaAutoCompressorConfig,
    GemmaAutoCompressorModel,
    LlamaAutoCompressorConfig,
    LlamaAutoCompressorModel,
    MistralAutoCompressorConfig,
    MistralAutoCompressorModel,
    OPTAutoCompressorConfig,
    OPTAutoCompressorModel,
    Qwen2AutoCompressorConfig,
    Qwen2AutoCompressorModel,
    Qwen3AutoCompressorConfig,
    Qwen3AutoCompressorModel,
)


ROOT = Path(__file__).parents[1]
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
DOUBLE = {"rtol": 1e-10, "atol": 1e-10}

OPT_FIELDS = {
    "vocab_size": 60,
    "hidden_size": 24,
    "word_embed_proj_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 32,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "summary_length": 3,
}
LLAMA_FIELDS = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "summary_length": 3,
}
# name -> config, model, base model, fields of a tiny one
AUTOCOMPRESSORS = {
    "opt": (OPTAutoCompressorConfig, OPTAutoCompressorModel, OPTForCausalLM, OPT_FIELDS),
    # As OPT-350m: embeddings narrower than the model, norms behind the layers, none at the end.
    "opt_projected": (
        OPTAutoCompressorConfig,
        OPTAutoCompressorModel,
        OPTForCausalLM,
        OPT_FIELDS | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "llama": (LlamaAutoCompressorConfig, LlamaAutoCompressorModel, LlamaForCausalLM, LLAMA_FIELDS),
    # As SmolLM2 and Llama 3: fewer key/value heads, and the embeddings are the head.
    "llama_grouped": (
        LlamaAutoCompressorConfig,
        LlamaAutoCompressorModel,
        LlamaForCausalLM,
        LLAMA_FIELDS
        | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"tie_word_embeddings": True},
    ),
    # The window is wider than most tests need: beyond it, no AutoCompressor works.
    "mistral": (
        MistralAutoCompressorConfig,
        MistralAutoCompressorModel,
        MistralForCausalLM,
        LLAMA_FIELDS | {"num_key_value_heads": 1, "sliding_window": 48},
    ),
    # Biases in the attention, and no special tokens by default.
    "qwen2": (
        Qwen2AutoCompressorConfig,
        Qwen2AutoCompressorModel,
        Qwen2ForCausalLM,
        LLAMA_FIELDS | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    # Norms on queries and keys, and heads of a size of their own.
    "qwen3": (
        Qwen3AutoCompressorConfig,
        Qwen3AutoCompressorModel,
        Qwen3ForCausalLM,
        LLAMA_FIELDS | {"head_dim": 10, "bos_token_id": 1, "eos_token_id": 2},
    ),
    # Embeddings scaled after the look-up.
    "gemma": (
        GemmaAutoCompressorConfig,
        GemmaAutoCompressorModel,
        GemmaForCausalLM,
        LLAMA_FIELDS | {"num_key_value_heads": 1, "head_dim": 10},
    ),
}
# Variable-length summaries: fields of a model that makes them, with control tokens that `random_ids` never draws.
SUM, EOC = 3, 4
VARIABLE_FIELDS = {
    "sum_token_id": SUM,
    "eoc_token_id": EOC,
    "compression_max_len": 4,
    "compression_lambda": 2.0,
    "compression_alpha": 0.5,
}
all_autocompressors = pytest.mark.parametrize("name", AUTOCOMPRESSORS)
# Where all would take long: the two families, each in both its forms.
opt_and_llama = pytest.mark.parametrize("name", ["opt", "opt_projected", "llama", "llama_grouped"])
both_families = pytest.mark.parametrize("name", ["opt", "llama"])


@torch.no_grad()
def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter anew, norms and biases too, so that one lost or swapped changes the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.Linear) and name == "weight":
                noise *= 1.5 * parameter.shape[1] ** -0.5
            elif parameter.ndim == 1:
                # Gemma adds the 1 itself.
                noise = 0.3 * noise + (name == "weight" and not isinstance(module, GemmaRMSNorm))
            parameter.copy_(noise)
    return model


def tiny_config(name: str, **fields):
    config_class, _, _, tiny_fields = AUTOCOMPRESSORS[name]
    return config_class(**tiny_fields | fields)


def tiny_autocompressor(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **fields):
    """A small AutoCompressor with random weights, in evaluation mode; `fields` may name an `attn_implementation`."""
    attn_implementation = fields.pop("attn_implementation", "sdpa")
    config = tiny_config(name, **fields)
    config._attn_implementation = attn_implementation
    return randomize_(AUTOCOMPRESSORS[name][1](config), seed).to(dtype).eval()


def variable_autocompressor(name: str, dtype: torch.dtype = torch.float64, sharpness: float = 1.0, **fields):
    """A tiny AutoCompressor with variable-length summaries, whose rows and segments stop after different steps."""
    model = tiny_autocompressor(name, dtype, **VARIABLE_FIELDS | fields)
    return balance_stops_(model, sharpness)


@torch.no_grad()
def balance_stops_(model, sharpness: float = 1.0):
    """Centres the stop logits, so that half of the steps would be the last, and scales them by `sharpness`."""
    head = model.stop_head
    # Where steps are much like each other, this makes the probability grow.
    head.weight.neg_()
    outputs = model.train()(segmented_ids(8, [6, 6], seed=50), segment_lengths=[6, 6], output_softprompt=True)
    probs = torch.cat([summary.stop_probs for summary in outputs.summaries], dim=1)
    head.bias.sub_(probs.logit().quantile(0.5))
    head.weight.mul_(sharpness)
    head.bias.mul_(sharpness)
    return model.eval()


def tiny_base(name: str, seed: int = 0, **fields):
    """The plain base model of a tiny AutoCompressor, with random weights, in evaluation mode."""
    config = tiny_config(name, **fields)
    base_config = AutoConfig.for_model(config.base_model_type, **AUTOCOMPRESSORS[name][3] | fields)
    # These would be kept, as unknown fields are.
    for field in ("summary_length", "accumulate_summary"):
        if hasattr(base_config, field):
            delattr(base_config, field)
    return randomize_(AUTOCOMPRESSORS[name][2](base_config), seed).eval()


def random_ids(*shape: int, seed: int = 0, vocab_size: int = 60) -> torch.LongTensor:
    """Random tokens; none is a special one."""
    return torch.randint(5, vocab_size, shape, generator=torch.Generator().manual_seed(100 + seed))


def segmented_ids(batch_size: int, segment_lengths: list[int], seed: int = 0) -> torch.LongTensor:
    """Random tokens with `<sum>` at the end of every segment."""
    segments = random_ids(batch_size, sum(segment_lengths), seed=seed).split(segment_lengths, dim=1)
    ends = torch.full((batch_size, 1), SUM)
    return torch.cat([piece for segment in segments for piece in (segment[:, :-1], ends)], dim=1)


def random_softprompt(model, batch_size: int, length: int, seed: int = 0) -> torch.Tensor:
    shape = (batch_size, length, model.get_input_embeddings().embedding_dim)
    softprompt = torch.randn(shape, generator=torch.Generator().manual_seed(200 + seed))
    return softprompt.to(model.dtype)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients by parameter name, zeros where there is none; the parameters' own are cleared."""
    model.zero_grad()
    loss.backward()
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }
    model.zero_grad()
    return found


def tensors_of(outputs) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def select_row(kwargs: dict, row: int) -> dict:
    """The arguments of one row of a batch."""
    return {
        name: value[row : row + 1] if isinstance(value, torch.Tensor) and value.ndim else value
        for name, value in kwargs.items()
    }


def pad_rows(rows: list[torch.Tensor], side: str) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Stacks `(1, length)` rows with garbage, not zeros, as padding; returns ids and mask."""
    width = max(row.shape[1] for row in rows)
    ids = random_ids(len(rows), width, seed=99)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - row.shape[1], width) if side == "left" else slice(0, row.shape[1])
        ids[index, where], mask[index, where] = row[0], 1
    return ids, mask


@contextmanager
def plain_path():
    """AutoCompressors read all summary vectors again in every segment."""
    with patch("auto_compressor.autocompressor.modeling_autocompressor.keeps_keys", lambda *_: False):
        yield


@contextmanager
def uninitialised_memory_is_nan():
    """Makes tensors from `torch.empty` NaN, so that a parameter that nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def recorded_attention(calls: list[dict]):
    """Registers the attention `recorded`: sdpa, which appends the arguments of each call to `calls`."""

    def attention(module, query, key, value, attention_mask, **kwargs):
        calls.append({"layer": module.layer_idx, "attention_mask": attention_mask, **kwargs})
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("recorded", attention)
    AttentionMaskInterface.register("recorded", sdpa_mask)
    try:
        yield
    finally:
        # There is no public way to take an attention back.
        AttentionInterface._global_mapping.pop("recorded")
        AttentionMaskInterface._global_mapping.pop("recorded")


@contextmanager
def saved_for_backward(sizes: list[int]):
    """Appends the elements of every tensor that autograd keeps for the backward pass."""

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def run_on_two_processes(script: str, folder: Path):
    """Runs a test file as the worker of one of its tests, which gets the folder as its argument."""
    done = run_program(script, folder, num_processes=2)
    assert done.returncode == 0, done.stderr


WITHOUT_PACKAGE = """
import sys

# The last two are not needed, and take seconds: see tests/commands.
for name in ("auto_compressor", "substep_trainer", "data", "args", "torchao", "bitsandbytes"):
    sys.modules[name] = None

import torch
import transformers

torch.set_num_threads(1)
"""

LOAD_WITHOUT_PACKAGE = """
folder, auto_class = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert type(model.config).__module__.startswith("transformers_modules."), type(model.config)
saved = torch.load(folder + "/expected.pt", weights_only=True)
with torch.no_grad():
    outputs = model(**saved["inputs"])
for name, value in saved["outputs"].items():
    assert torch.equal(outputs[name], value), name
"""


class ModelTests:
    """
    What every model must do. A subclass sets the attributes and defines `make_inputs(model)`, the arguments of a call
    that gives a loss and uses every parameter, and `expected_shapes(model, inputs)`, the shape of every tensor of the
    output by name.

    Attributes:
        model_class, output_class: The classes under test; the model class names its config class.
        auto_class: The Auto class that the model is registered with.
        config_fields (`dict`): A tiny config, all dropout 0.
        other_fields (`dict`): Values that are not the defaults, for the round trip of the config.
        bad_fields (`list[tuple[str, Any]]`): Fields with a value that the config must refuse by the field's name.
        without_gradient (`str`): Names (a regex) of parameters whose gradient is 0 by mathematics.
    """

    model_class: type
    output_class: type
    auto_class: type = AutoModelForCausalLM
    config_fields: dict
    other_fields: dict = {}
    bad_fields: list = []
    without_gradient: str = "(?!)"

    def make_config(self, **fields):
        return self.model_class.config_class(**self.config_fields | fields)

    def make_model(self, attn_implementation="sdpa", dtype=torch.float32, **fields):
        config = self.make_config(**fields)
        config._attn_implementation = attn_implementation
        return randomize_(self.model_class(config)).to(dtype).eval()

    def to_training(self, model):
        """Puts a model into training mode; a family whose forward pass then changes buffers keeps them fixed."""
        return model.train()

    def floats_to(self, inputs, dtype):
        return {
            name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in inputs.items()
        }

    def test_output(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        outputs = model(**inputs)
        assert type(outputs) is self.output_class
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(outputs).items()}
        assert shapes == self.expected_shapes(model, inputs)
        assert all(tensor.isfinite().all() for tensor in tensors_of(outputs).values())
        as_tuple = model(**inputs, return_dict=False)
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs[0])

    def test_save_and_load(self, tmp_path):
        model = self.make_model()
        inputs = self.make_inputs(model)
        model.save_pretrained(tmp_path)
        files = {path.name for path in tmp_path.iterdir()}
        assert "model.safetensors" in files and not [name for name in files if name.endswith((".bin", ".pt"))]
        loaded = self.auto_class.from_pretrained(tmp_path)
        assert type(loaded) is self.model_class
        assert type(AutoConfig.from_pretrained(tmp_path)) is self.model_class.config_class
        assert type(loaded.config) is self.model_class.config_class
        assert not loaded.training
        assert_close(dict(loaded.state_dict()), dict(model.state_dict()), **EXACT)
        assert_close(dict(loaded.named_buffers()), dict(model.named_buffers()), **EXACT)
        assert_close(tensors_of(loaded(**inputs)), tensors_of(model(**inputs)), **EXACT)

    def test_each_missing_key_is_initialised(self, tmp_path):
        """Every eighth key is missing at a time, so that the others of its module are there."""
        self.make_model().save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        for missing in (list(weights)[first::8] for first in range(min(8, len(weights)))):
            given = {name: tensor for name, tensor in weights.items() if name not in missing}
            save_file(given, tmp_path / "model.safetensors", metadata={"format": "pt"})
            states = []
            for _ in range(2):
                torch.manual_seed(1)
                with uninitialised_memory_is_nan():
                    model = self.model_class.from_pretrained(tmp_path)
                states.append(model.state_dict() | dict(model.named_buffers()))
            for name, tensor in states[0].items():
                assert tensor.isfinite().all(), f"without {missing}: {name}"
                assert torch.equal(tensor, states[1][name]), f"without {missing}: {name}"
                if name in given:
                    assert torch.equal(tensor, given[name]), f"without {missing}: {name} was overwritten"

    def test_every_parameter_gets_a_gradient(self):
        model = self.to_training(self.make_model())
        for name, gradient in gradients(model, model(**self.make_inputs(model)).loss).items():
            assert gradient.isfinite().all(), name
            if not re.search(self.without_gradient, name):
                assert gradient.abs().max() > 1e-5, name

    def test_eager_equals_sdpa(self):
        results = []
        for attn_implementation in ("eager", "sdpa"):
            model = self.to_training(self.make_model(attn_implementation, torch.float64))
            assert model.config._attn_implementation == attn_implementation
            outputs = model(**self.floats_to(self.make_inputs(model), torch.float64))
            results.append((tensors_of(outputs), gradients(model, outputs.loss)))
        # The models take softmax and loss in float32 all the same.
        assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
        assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, dtype, tmp_path):
        self.make_model(dtype=dtype).save_pretrained(tmp_path)
        model = self.model_class.from_pretrained(tmp_path)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        outputs = tensors_of(model(**self.floats_to(self.make_inputs(model), dtype)))
        for name, tensor in outputs.items():
            assert tensor.isfinite().all(), name
            if name not in ("loss", "length_penalty", "entropies") and tensor.is_floating_point():
                assert tensor.dtype == dtype, name
        wide = self.model_class.from_pretrained(tmp_path, dtype=torch.float32)
        expected = tensors_of(wide(**self.make_inputs(wide)))
        assert_close(outputs["loss"].float(), expected["loss"], rtol=0.1, atol=0.1)

    @pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")  # 5.17 has no other name
    def test_gradient_checkpointing(self):
        model = self.to_training(self.make_model())
        inputs = self.make_inputs(model)
        expected = model(**inputs)
        expected_gradients = gradients(model, expected.loss)
        saved = {False: [], True: []}
        with saved_for_backward(saved[False]):
            model(**inputs)
        model.gradient_checkpointing_enable()
        with saved_for_backward(saved[True]):
            outputs = model(**inputs)
        assert_close(tensors_of(outputs), tensors_of(expected), **EXACT)
        assert_close(gradients(model, outputs.loss), expected_gradients, **CLOSE)
        assert sum(saved[True]) < sum(saved[False])

    def test_config_round_trip(self, tmp_path):
        config = self.make_config(**self.other_fields)
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is type(config)
        assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
        written = json.loads((tmp_path / "config.json").read_text())
        for field, value in self.other_fields.items():
            assert getattr(loaded, field) == value == written[field]
        assert json.loads(json.dumps(config.to_diff_dict()))["model_type"] == config.model_type

    def test_config_rejects(self):
        for field, value in self.bad_fields:
            with pytest.raises((ValueError, StrictDataclassError), match=field):
                self.make_config(**{field: value})


def run_without_package(script: str, folder: Path, *arguments: str):
    """Runs Python in which nothing of this repository can be imported, on a folder with a model and its code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(folder.parent / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", WITHOUT_PACKAGE + script, str(folder), *arguments]
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class HubTests:
    """Beside `ModelTests`, for one model of each family: its code works from the hub."""

    def test_loads_without_the_package(self, tmp_path):
        """As from the hub: the code lies beside the weights, and nothing of this repository can be imported."""
        model, folder = self.make_model(), tmp_path / "published"
        inputs = self.make_inputs(model)
        model.save_pretrained(folder)
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig", self.auto_class.__name__}
        with torch.no_grad():  # as the script: with gradients, a CPU takes other ways to the same numbers
            torch.save({"inputs": inputs, "outputs": tensors_of(model(**inputs))}, folder / "expected.pt")
        run_without_package(LOAD_WITHOUT_PACKAGE, folder, self.auto_class.__name__)


class CausalLMTests(ModelTests):
    """What every language model must do besides: predict from the past only, each row for itself, cached or not."""

    text_length = 11

    def make_ids(self, batch_size: int, length: int, seed: int = 0) -> torch.LongTensor:
        return random_ids(batch_size, length, seed=seed)

    def settings(self, model, batch_size: int) -> list[dict]:
        """Further arguments under which the tests run, each for `batch_size` rows."""
        return [{}]

    def unpadded_settings(self, model, batch_size: int) -> list[dict]:
        """Those that fit a text of any length."""
        return self.settings(model, batch_size)

    @torch.no_grad()
    def test_causality_and_rows(self):
        model = self.make_model()
        for settings in self.settings(model, 2):
            ids = self.make_ids(2, self.text_length)
            expected = model(ids, **settings).logits
            for position in (ids[0] > EOC).nonzero()[:, 0].tolist():
                changed = ids.clone()
                changed[0, position] = (changed[0, position] + 1) % 50
                logits = model(changed, **settings).logits
                assert torch.equal(logits[0, :position], expected[0, :position]), f"{settings}: {position}"
                assert not logits[0, position:].isclose(expected[0, position:], atol=1e-4).all(dim=1).any()
                assert torch.equal(logits[1], expected[1])

    @pytest.mark.parametrize("side", ["left", "right"])
    @torch.no_grad()
    def test_padding(self, side):
        model = self.make_model(dtype=torch.float64)
        rows = [self.make_ids(1, length, seed=length) for length in (9, 4, 1)]
        ids, mask = pad_rows(rows, side)
        for settings in self.unpadded_settings(model, len(rows)):
            batched = model(ids, attention_mask=mask, **settings)
            for index, row in enumerate(rows):
                alone = model(row, **select_row(settings, index))
                assert_close(batched.logits[index, mask[index].bool()], alone.logits[0], **DOUBLE)
                if "softprompt" in alone:
                    assert_close(batched.softprompt[index], alone.softprompt[0], **DOUBLE)

    @pytest.mark.parametrize("chunks", [[1] * 11, [4, 2, 5]], ids=["tokens", "chunks"])
    @pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
    @torch.no_grad()
    def test_cached_equals_uncached(self, chunks, padded):
        model = self.make_model(dtype=torch.float64)
        ids, mask = self.make_ids(2, 11), torch.ones(2, 11, dtype=torch.long)
        if padded:
            mask[1, :3] = 0
        for settings in self.unpadded_settings(model, 2):
            given = {"attention_mask": mask} if padded else {}
            expected = model(ids, use_cache=False, **given, **settings)
            assert expected.cache is None
            cache, logits, seen = None, [], 0
            for piece in ids.split(chunks, dim=1):
                seen += piece.shape[1]
                given = {"attention_mask": mask[:, :seen]} if padded else {}
                outputs = model(piece, cache=cache, use_cache=True, **given, **settings)
                cache = outputs.cache
                logits.append(outputs.logits)
            where = mask.bool()
            assert_close(torch.cat(logits, dim=1)[where], expected.logits[where], **DOUBLE)


class AnyAutoCompressorTests(CausalLMTests):
    """What the tests of fixed and variable length share. A subclass names its base, a key of `AUTOCOMPRESSORS`."""

    name: str
    output_class = AutoCompressorOutput
    # Adding to every key what is the same for all does not change an attention.
    without_gradient = r"k_proj\.bias"

    @property
    def config_fields(self):
        return AUTOCOMPRESSORS[self.name][3]

    @property
    def model_class(self):
        return AUTOCOMPRESSORS[self.name][1]

    def make_segments(self, batch_size, segment_lengths):
        """A text of such segments."""
        return random_ids(batch_size, sum(segment_lengths))

    def num_vectors(self, config) -> int:
        """Summary vectors that a segment gets in training."""
        return config.summary_length

    def make_inputs(self, model):
        ids = self.make_segments(2, [6, 5])
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": ids.masked_fill(mask == 0, -100),
            "softprompt": random_softprompt(model, 2, 2),
            "segment_lengths": [6, 5],
            "output_softprompt": True,
        }

    def expected_shapes(self, model, inputs):
        length = 2 + 2 * self.num_vectors(model.config)
        return {
            "loss": (),
            "logits": (2, 11, model.config.vocab_size),
            "last_hidden_state": (2, 11, model.get_input_embeddings().embedding_dim),
            "softprompt": (2, length, model.get_input_embeddings().embedding_dim),
            "softprompt_attention_mask": (2, length),
        }

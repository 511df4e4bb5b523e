"""Published checkpoints of other families as folders that `from_pretrained` loads."""

import dataclasses
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from .convert_continuous_text_autoencoder import (
    CONTINUOUS_FIELDS,
    CONTINUOUS_WEIGHTS,
    complete_weights,
    find_weights,
    published_settings,
)
from .modeling_adaptive_byte import AdaptiveByteForCausalLM
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder
from .modeling_gru_byte import GRUByteForCausalLM
from .tokenization_bytes import ByteTokenizer
from .whole_files import remove_left_over, whole_folder


MODELS = {
    "adaptive_byte": AdaptiveByteForCausalLM,
    "gru_byte": GRUByteForCausalLM,
    "continuous_text_autoencoder": ContinuousTextAutoencoder,
}

# Patterns of published names, and what they are called here; behind a `+`, numbers are one higher.
GRU = r"gru\.(\w+)_l(\d)"
RENAMED = {
    "adaptive_byte": [
        (r"byte_embedding\.", r"levels.0.embed_tokens."),
        (r"byte_encoder_head\.", r"levels.0.head."),
        (r"byte_decoder_head\.", r"lm_head."),
        (rf"encoder_blocks\.(\d+)\.{GRU}", r"levels.\1.encoder.layers.\3.\2_l0"),
        (rf"decoder_blocks\.(\d+)\.gru\.{GRU}", r"levels.\1.decoder.layers.\3.\2_l0"),
        (r"decoder_blocks\.(\d+)\.parent_projection\.", r"levels.\1.patch_proj."),
        (r"meta_predictors\.(\d+)\.", r"levels.+\1.predictor."),
        (r"meta_uncertainty_heads\.(\d+)\.", r"levels.+\1.uncertainty_head."),
        (r"meta_eos_embeddings\.(\d+)", r"levels.+\1.end_state"),
    ],
    "gru_byte": [
        (r"parameter_match_pad", r"padding_parameters"),
        (r"byte_embedding\.", r"embed_tokens."),
        (r"byte_head\.", r"lm_head."),
        (rf"blocks\.(\d+)\.gru_block\.{GRU}", r"blocks.\1.layers.\3.\2_l0"),
    ],
    "continuous_text_autoencoder": CONTINUOUS_WEIGHTS,
}
# Published fields that have another name here, and those that are called the same.
RENAMED_FIELDS = {"byte_eos_id": "eos_token_id", "threshold": "border_error_threshold"} | CONTINUOUS_FIELDS
SAME_FIELDS = (
    *("vocab_size", "hidden_size", "num_levels", "dropout", "border_mode", "latent_dim"),
    *("byte_entropy_threshold", "meta_uncertainty_threshold", "entropy_floor", "entropy_reg_weight"),
    *("encoder_loss_weight", "decoder_loss_weight", "meta_loss_weight", "uncertainty_loss_weight"),
)


class PublishedConfig:
    """Stands for the class of published configs: it takes their fields, and runs nothing of theirs."""


# All that a checkpoint may name besides tensors.
SAFE_GLOBALS = [
    (PublishedConfig, "adaptive_compressor.models.modules.AdaptiveCompressorConfig"),
    (PurePosixPath, "pathlib.PosixPath"),
]


def own_name(family: str, name: str) -> str | None:
    """The name here of a published weight, None if it has none."""
    for pattern, replacement in RENAMED[family]:
        renamed, found = re.subn(rf"^{pattern}", replacement, name)
        if found:
            return re.sub(r"\+(\d+)", lambda number: str(int(number[1]) + 1), renamed)
    return None


def family_of(names: list[str]) -> str:
    """The family that knows the most of the published names."""
    return max(MODELS, key=lambda family: sum(own_name(family, name) is not None for name in names))


def read_checkpoint(path: Path) -> Any:
    """
    Returns what a published `.pt` file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it names anything but tensors, the published config and paths.
    """
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            checkpoint = {} if unsafe else torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file makes the reader of torch raise almost anything
        raise OSError(f"Cannot read the checkpoint {path}: it is damaged, or not what torch.save writes.") from error
    if unsafe:
        raise ValueError(f"{path} must hold tensors and a published config only, it names {', '.join(unsafe)}.")
    return checkpoint


def read_file(family: str, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns the fields of the config and the weights of a published `.pt` file, all under their published names.

    Raises:
        OSError, ValueError: as `read_checkpoint`, and if it holds something else.
    """
    checkpoint = read_checkpoint(path)
    if family == "continuous_text_autoencoder":
        if (weights := find_weights(checkpoint)) is None:
            raise ValueError(f"{path} must hold weights by name, alone or as one of its entries.")
        return {}, weights
    if not is_published(checkpoint):
        raise ValueError(f"{path} must hold a published config, `config`, and weights by name, `model_state`.")
    return vars(checkpoint["config"]), checkpoint["model_state"]


def is_published(checkpoint: Any) -> bool:
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("config"), PublishedConfig):
        return False
    weights = checkpoint.get("model_state")
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    return named and all(isinstance(tensor, torch.Tensor) for tensor in weights.values())


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """As `read_file`, from `config.json` and `model.safetensors`."""
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8")), load_file(path / "model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise OSError(f"Cannot read the checkpoint {path}: {error}") from error


def own_config(family: str, published: dict[str, Any]) -> PreTrainedConfig:
    """
    The config here of published fields; those that are missing have the same defaults.

    Raises:
        ValueError: if a field has a value that the config cannot have.
    """
    config_class = MODELS[family].config_class
    fields = {field: published[field] for field in SAME_FIELDS if field in published}
    fields |= {own: published[field] for field, own in RENAMED_FIELDS.items() if field in published}
    if "eos_token_id" in fields:
        fields["pad_token_id"] = fields["eos_token_id"]
    if published.get("level_thresholds"):
        fields["meta_uncertainty_threshold"] = published["level_thresholds"]
    known = {field.name for field in dataclasses.fields(config_class)}
    try:
        return config_class(**{field: value for field, value in fields.items() if field in known})
    except StrictDataclassError as error:
        raise ValueError(f"The config of the checkpoint is not one of {family}: {error}") from error


def load_published(family: str, source: str | os.PathLike) -> PreTrainedModel:
    """
    The model of a published checkpoint.

    Args:
        family (`str`): `"adaptive_byte"`, `"gru_byte"` or `"continuous_text_autoencoder"`.
        source: A published `.pt` file, which is read without running what it names, or a folder with `config.json`
            and `model.safetensors` under the published names. What a continuous text autoencoder lacks of its
            settings is read from the shapes of its weights.

    Raises:
        OSError: if the source is missing or damaged.
        ValueError: if it names anything but tensors, the published config and paths, is of another family, or its
            weights are not those of its config.
    """
    source = Path(source)
    published, weights = read_folder(source) if source.is_dir() else read_file(family, source)
    if (found := family_of(list(weights))) != family:
        raise ValueError(f"{source} must be of the family {family}, its weights are those of {found}.")
    if family == "continuous_text_autoencoder":
        published = published_settings(weights) | published
    with torch.device("meta"):  # all weights are to come
        model = MODELS[family](own_config(family, published))
    weights = {own_name(family, name) or name: tensor for name, tensor in weights.items()}
    if family == "continuous_text_autoencoder":
        weights = complete_weights(weights, model.config.latent_dim)
    load_weights(model, weights, source)
    return model


def load_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor], source: Path):
    """Loads all weights in their dtype; a `ValueError` lists those that are missing, unknown or of another shape."""
    expected = model.state_dict()
    wrong = [f"has an unknown {name}" for name in weights if name not in expected]
    for name, tensor in expected.items():
        found = weights.get(name)
        if found is None:
            wrong.append(f"lacks {name}")
        elif found.shape != tensor.shape or not found.is_floating_point():
            wrong.append(f"has {name} as {found.dtype} {tuple(found.shape)} instead of floats {tuple(tensor.shape)}")
    if wrong:
        raise ValueError(f"The weights of {source} must be those of its config: it {', '.join(wrong)}.")
    model.load_state_dict(weights, assign=True)


def convert_checkpoint(family: str, source: str | os.PathLike, target: str | os.PathLike) -> PreTrainedModel:
    """
    Writes the model of a published checkpoint, and the tokenizer of bytes, to a folder; it is there whole or not at
    all.

    Args:
        family, source: As in [`load_published`].
        target: The folder to write, which must not be there, or be empty.

    Returns:
        `PreTrainedModel`: The model.

    Raises:
        OSError: if the source is missing or damaged, or the target cannot be written or is not empty.
        ValueError: as in [`load_published`].
    """
    target = Path(target)
    remove_left_over(target, target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} must be a new or an empty folder.")
    model = load_published(family, source)
    with whole_folder(target) as part:
        model.save_pretrained(part)
        if family != "continuous_text_autoencoder":
            ByteTokenizer().save_pretrained(part)
    return model


__all__ = ["convert_checkpoint", "load_published"]

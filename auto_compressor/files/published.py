"""Checkpoints that others published: how they are read without running anything, and what a format must say."""

import dataclasses
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from ..tokenization_bytes import ByteTokenizer


class PublishedConfig:
    """Stands for the class of published configs: it takes their fields, and runs nothing of theirs."""


# All that a checkpoint may name besides tensors.
SAFE_GLOBALS = [
    (PublishedConfig, "adaptive_compressor.models.modules.AdaptiveCompressorConfig"),
    (PurePosixPath, "pathlib.PosixPath"),
]


class PublishedFormat(ABC):
    """
    What published checkpoints of a model are called here.

    Args:
        model_class (`type`): The model that they become.
        weights (`Sequence[tuple[str, str]]`): Patterns of published names, and what they are replaced by; behind a
            `+`, numbers are one higher.
        fields (`Mapping[str, str]`): Published fields of the config, and their names here.
    """

    tokenizer: ByteTokenizer | None = None
    contents = "weights by name"  # what a file must hold

    def __init__(
        self, model_class: type[PreTrainedModel], weights: Sequence[tuple[str, str]], fields: Mapping[str, str]
    ):
        self.model_class, self.weights, self.fields = model_class, weights, fields

    def own_name(self, name: str) -> str | None:
        """The name here of a published weight, None if it has none."""
        for pattern, replacement in self.weights:
            renamed, found = re.subn(rf"^{pattern}", replacement, name)
            if found:
                return re.sub(r"\+(\d+)", lambda number: str(int(number[1]) + 1), renamed)
        return None

    @abstractmethod
    def find(self, checkpoint: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The fields of the config and the weights in what a published file holds; None if it is something else."""

    def own_fields(self, published: Mapping[str, Any]) -> dict[str, Any]:
        return {own: published[name] for name, own in self.fields.items() if name in published}

    def own_config(self, published: Mapping[str, Any]) -> PreTrainedConfig:
        """
        The config here of published fields; those that are missing have the same defaults.

        Raises:
            ValueError: if a field has a value that the config cannot have.
        """
        config_class = self.model_class.config_class
        known = {field.name for field in dataclasses.fields(config_class)}
        fields = {name: value for name, value in self.own_fields(published).items() if name in known}
        try:
            return config_class(**fields)
        except StrictDataclassError as error:
            raise ValueError(
                f"The config of the checkpoint is not one of {config_class.model_type}: {error}"
            ) from error

    def settings(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Published fields that the shapes of published weights tell."""
        return {}

    def own_weights(self, weights: Mapping[str, torch.Tensor], config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """The weights under their names here; unknown ones keep theirs."""
        return {self.own_name(name) or name: tensor for name, tensor in weights.items()}


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


def read_file(path: Path, form: PublishedFormat) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns the fields of the config and the weights of a published `.pt` file, all under their published names.

    Raises:
        OSError, ValueError: as `read_checkpoint`, and if it holds something else.
    """
    found = form.find(read_checkpoint(path))
    if found is None:
        raise ValueError(f"{path} must hold {form.contents}.")
    return found


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """As `read_file`, from `config.json` and `model.safetensors`."""
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8")), load_file(path / "model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise OSError(f"Cannot read the checkpoint {path}: {error}") from error


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


__all__ = ["PublishedConfig", "PublishedFormat", "load_weights", "read_file", "read_folder"]

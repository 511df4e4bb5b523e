"""Published checkpoints of other projects as folders that `from_pretrained` loads."""

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .families import families_with, module_of
from .files.published import PublishedFormat, load_weights, read_file, read_folder
from .files.whole_files import check_new_folder, whole_folder


# model type -> what its published checkpoints are called here
FORMATS: dict[str, PublishedFormat] = {}
for name in families_with("published"):
    FORMATS |= module_of(name, "published").FORMATS


def family_of(names: list[str]) -> str:
    """The family that knows the most of the published names."""
    return max(FORMATS, key=lambda family: sum(FORMATS[family].own_name(name) is not None for name in names))


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
    source, form = Path(source), FORMATS[family]
    published, weights = read_folder(source) if source.is_dir() else read_file(source, form)
    if (found := family_of(list(weights))) != family:
        raise ValueError(f"{source} must be of the family {family}, its weights are those of {found}.")
    with torch.device("meta"):  # all weights are to come
        model = form.model_class(form.own_config(form.settings(weights) | published))
    load_weights(model, form.own_weights(weights, model.config), source)
    return model


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
    check_new_folder(target)
    model = load_published(family, source)
    with whole_folder(target) as part:
        model.save_pretrained(part)
        if FORMATS[family].tokenizer is not None:
            FORMATS[family].tokenizer.save_pretrained(part)
    return model


__all__ = ["FORMATS", "convert_checkpoint", "load_published"]

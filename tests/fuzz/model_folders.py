"""Model folders of every family with a damaged config or damaged weights."""

import argparse
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from auto_compressor.autocompressor.bases import load_autocompressor
from auto_compressor.cli import common

from .cases import Case, require_right, share
from .models import AUTOCOMPRESSORS, MODELS, make_model
from .mutations import JSON, SAFETENSORS, Mutation, damaged


def load_model(name: str, folder: Path) -> PreTrainedModel:
    """As the commands load a model of this family."""
    if name in AUTOCOMPRESSORS:
        return load_autocompressor(str(folder))
    return common.load_model(argparse.Namespace(model=str(folder), device="cpu"), name)


def read_model(name: str, folder: Path):
    """Every tensor of a model is that of its file, as often as the model holds it; values may be damaged."""
    model = load_model(name, folder)
    expected = load_file(folder / "model.safetensors").values()
    for key, found in model.state_dict().items():
        same = (torch.equal(found.nan_to_num(), tensor.to(found.dtype).nan_to_num()) for tensor in expected)
        require_right(any(same), f"{key} is not in the file")


def folders(file: str, ways: list[Mutation], folder: Path, count: int, seed: int) -> Iterator[Case]:
    """A folder of every family in turn, in which one file is damaged."""
    draw, families = random.Random(seed), [*AUTOCOMPRESSORS, *MODELS]
    for place, name in enumerate(families):
        path = folder / name
        make_model(name).save_pretrained(path)
        good = (path / file).read_bytes()
        for index in range(-1, share(count, place, len(families))):
            data = damaged(good, ways, index, draw) if index >= 0 else good
            (path / file).write_bytes(data)
            yield Case(name, partial(read_model, name, path), path, len(data))
        shutil.rmtree(path)


def configs(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """`config.json` of every family: refused, or a model with no weights but those of its file."""
    return folders("config.json", JSON, folder, count, seed)


def weights(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """`model.safetensors` of every family: refused, or a model with no weights but those of its file."""
    return folders("model.safetensors", SAFETENSORS, folder, count, seed)

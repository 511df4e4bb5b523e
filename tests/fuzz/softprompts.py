"""Softprompt files, damaged as they are and with the checksum of what they hold."""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import PreTrainedModel

from auto_compressor.autocompressor.softprompts import SOFTPROMPT, load_softprompt, save_softprompt
from auto_compressor.files import vector_file

from .cases import Case, require_right, share
from .models import make_model
from .mutations import SAFETENSORS, damaged, split_safetensors


RESEALED = "right checksum"


def with_checksum(data: bytes) -> bytes:
    """A file whose SHA-256 is that of what it holds; one that cannot be read stays as it is."""
    try:
        ((name, vectors),) = load(data).items()
        metadata = json.loads(split_safetensors(data)[0])["__metadata__"]
        return save({name: vectors}, metadata | {"sha256": vector_file.checksum(vectors, metadata)})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return data


def held(data: bytes) -> torch.Tensor:
    """The vectors of a file, as safetensors reads them."""
    return load(data)[SOFTPROMPT.name]


def read(path: Path, model: PreTrainedModel | None, vectors: torch.Tensor, sealed: bool):
    """Vectors must be those that were saved; under a checksum that was made right again, those that the file holds."""
    found = load_softprompt(path, model).vectors
    expected = held(path.read_bytes()) if sealed else vectors
    require_right(torch.equal(found, expected.to(found.dtype)), "other vectors came back")


def softprompts(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Files of `summarize`: refused, or the vectors that were saved."""
    model, path, draw = make_model("llama"), folder / "damaged.safetensors", random.Random(seed)
    vectors = torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    save_softprompt(path, vectors, model, num_tokens=40)
    good = path.read_bytes()
    for place, kind in enumerate(("as it is", RESEALED)):
        sealed = kind == RESEALED
        for index in range(-1, share(count, place, 2)):
            data = damaged(good, SAFETENSORS, index, draw) if index >= 0 else good
            data = with_checksum(data) if sealed else data
            path.write_bytes(data)
            yield Case(kind, partial(read, path, model if index % 2 else None, vectors, sealed), path, len(data))

"""Summary vectors on disk: one safetensors file with the vectors and what they belong to."""

import os
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..files.vector_file import (
    VectorFileError,
    VectorFormat,
    check_model,
    check_saveable,
    read_vectors,
    require,
    write_vectors,
)
from ..files.whole_files import whole_file, write_whole


SOFTPROMPT = VectorFormat("softprompt", "auto_compressor.softprompt.v1")
SoftpromptFileError = VectorFileError


@dataclass(frozen=True)
class Softprompt:
    """
    Summary vectors of a text.

    Args:
        vectors (`torch.Tensor` of shape `(batch_size, softprompt_length, embedding_dim)`): The softprompt.
        num_tokens (`int`): Tokens of each text that they stand for.
        model_name (`str`): Name or folder of the model that made them.
        fingerprint (`str`): The weights of that model, see [`model_fingerprint`].
    """

    vectors: torch.Tensor
    num_tokens: int
    model_name: str
    fingerprint: str

    @property
    def compression_ratio(self) -> float:
        """Tokens per vector."""
        return self.num_tokens / self.vectors.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the vectors, in the dtype that they have here."""
        return self.vectors.numel() * self.vectors.element_size()


def save_softprompt(path: str | os.PathLike, softprompt: torch.Tensor, model: PreTrainedModel, num_tokens: int):
    """
    Saves summary vectors with the identity of their model; the file is there whole or not at all.

    Args:
        path: The file, usually `*.safetensors`. An old one is replaced.
        softprompt (`torch.Tensor` of shape `(batch_size, softprompt_length, embedding_dim)`): The vectors.
        model (`PreTrainedModel`): The AutoCompressor that made them.
        num_tokens (`int`): Tokens of each text that they stand for.

    Raises:
        ValueError: if the softprompt is empty, of another shape, no floats or not finite, or `num_tokens` below 1.
        OSError: if the file cannot be written.
    """
    check_saveable("softprompt", softprompt, model.get_input_embeddings().embedding_dim, num_tokens)
    write_vectors(path, SOFTPROMPT, softprompt, model, num_tokens)


def load_softprompt(path: str | os.PathLike, model: PreTrainedModel | None = None) -> Softprompt:
    """
    Loads what [`save_softprompt`] wrote; with a model, onto its device and in its dtype.

    Raises:
        OSError: if the file is missing, damaged or of another kind; in the last two cases it is a `ValueError` too.
        ValueError: if the vectors do not fit the dtype of `model`,
            have another width than those of `model`, or were made by other weights.
    """
    vectors, metadata = read_vectors(path, SOFTPROMPT)
    if model is not None:
        check_model(path, SOFTPROMPT, vectors, metadata, model, model.get_input_embeddings().embedding_dim)
        vectors = vectors.to(model.device, model.get_input_embeddings().weight.dtype)
        require(path, bool(vectors.isfinite().all()), f"its vectors must be finite in {vectors.dtype}", "infinity")
    return Softprompt(vectors, int(metadata["num_tokens"]), metadata["model_name"], metadata["fingerprint"])


__all__ = [
    "Softprompt",
    "SoftpromptFileError",
    "load_softprompt",
    "save_softprompt",
    "whole_file",
    "write_whole",
]

"""The identity of a model: hashes by which two sets of weights are told apart."""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel


@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """
    SHA-256 over the shape and the first row of every parameter, by which two sets of weights are told apart.

    It identifies the weights, not the name of the model; only first rows are read, so that it is cheap at 7B too.
    Rows are rounded to bfloat16, so that a float32 and a bfloat16 load of one checkpoint agree. A float32 checkpoint
    loaded in float16, or adapters merged in another dtype, may round differently and be refused; a training step too
    small to show in bfloat16 in any first row is not seen. Quantised weights are told apart by what they hold, in the
    order in which they are saved.
    """
    digest = hashlib.sha256()
    if any(hasattr(parameter, "quant_state") for parameter in model.parameters()):
        # On CPUs bitsandbytes reorders its weights at their first use; saving undoes that.
        model.state_dict()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        for tensor in plain_tensors(parameter):
            row = first_row(tensor, parameter).to(torch.bfloat16).cpu()
            digest.update(row.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a weight holds: itself, or those inside of a subclass, as quantised weights are."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    else:
        yield tensor


def first_row(tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The first row of a tensor; of a 4-bit weight, one column of bytes, as many bytes as its rows are wide."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", tensor.shape)
    return tensor.reshape(-1)[: shape[-1] if len(shape) else 1]


def weights_hash(model: torch.nn.Module) -> str:
    """
    SHA-256 over names, shapes and values of all weights and codebooks.

    Values count, not dtypes: a bfloat16 checkpoint has one hash in bfloat16 and in float32. A float32 checkpoint that
    is rounded to bfloat16 is another model, and decodes to other bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        # Quantised weights are tensors of other tensors.
        values = tensor.dequantize() if is_traceable_wrapper_subclass(tensor) else tensor
        digest.update(values.detach().cpu().double().contiguous().numpy())
    return digest.hexdigest()


__all__ = ["model_fingerprint", "weights_hash"]

"""Gated recurrent layers that stop at every row's own length and go on from there."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .gru_function import GRUFunction


class GRUBlock(nn.Module):
    """
    Two GRU layers (Cho et al., arXiv 1406.1078), one upon the other, without norm or residual.

    Args:
        hidden_size (`int`): Width of inputs, states and outputs.
        dropout (`float`, defaults to 0.0): Probability of a zero between the layers, in training.
    """

    def __init__(self, hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.layers = nn.ModuleList(nn.GRU(hidden_size, hidden_size, batch_first=True) for _ in range(2))

    def forward(
        self, inputs: torch.Tensor, state: torch.Tensor | None = None, lengths: torch.LongTensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            inputs (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): With one position at least.
            state (`torch.Tensor` of shape `(batch_size, 2, hidden_size)`, *optional*): States of both layers, from
                earlier positions; zeros if None.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Positions of each row, padding behind
                them left out; may be 0.

        Returns:
            `tuple`: Outputs `(batch_size, length, hidden_size)`, and the state after the last position of each row.
        """
        if state is None:
            state = inputs.new_zeros(inputs.shape[0], 2, inputs.shape[2])  # (batch, 2, hidden)
        outputs, states = inputs, []
        for index, layer in enumerate(self.layers):
            if index:
                outputs = F.dropout(outputs, self.dropout, self.training)
            before = state[:, index].to(outputs.dtype)  # (batch, hidden)
            outputs = run_layer(layer, outputs, before)
            states.append(outputs[:, -1] if lengths is None else state_at(before, outputs, lengths))
        return outputs, torch.stack(states, dim=1)  # (batch, length, hidden), (batch, 2, hidden)


def run_layer(layer: nn.GRU, inputs: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Outputs `(batch_size, length, size)`, from the state `(batch_size, size)` on."""
    weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
    if inputs.shape[1] == 1:  # half the time of the general way
        return torch.gru_cell(inputs[:, 0], before, *weights)[:, None]
    if not has_hooks(layer) and is_trained_on_cpu(inputs, before, *layer.parameters()):
        return GRUFunction.apply(inputs.transpose(0, 1), before, *weights).transpose(0, 1)
    return layer(inputs, before[None].contiguous())[0]  # torch takes (layers = 1, batch, size)


def has_hooks(layer: nn.GRU) -> bool:
    """Whether calling a layer does more than its arithmetic, such as pruning its weights."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)


def is_trained_on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether [`GRUFunction`] takes these tensors, all float32 or all float64 on a CPU, and gradients are wanted."""
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.is_autocast_enabled("cpu") or not all(tensor.is_cpu for tensor in tensors):
        return False
    return {tensor.dtype for tensor in tensors} in ({torch.float32}, {torch.float64})


def state_at(before: torch.Tensor, outputs: torch.Tensor, lengths: torch.LongTensor) -> torch.Tensor:
    """The state `(batch_size, size)` after the first `lengths` positions: none of them leaves it as it was before."""
    states = torch.cat([before[:, None], outputs], dim=1)  # (batch, 1 + length, size)
    return states.gather(1, lengths[:, None, None].expand(-1, -1, states.shape[-1]))[:, 0]


def init_as_torch(module: nn.Module):
    """Draws embeddings, linear and recurrent layers as torch does: N(0, 1), and uniform within +-1/sqrt(inputs)."""
    if isinstance(module, nn.Embedding):
        init.normal_(module.weight)
    elif isinstance(module, nn.Linear | nn.GRU):
        bound = (module.hidden_size if isinstance(module, nn.GRU) else module.in_features) ** -0.5
        for parameter in module.parameters():
            init.uniform_(parameter, -bound, bound)


__all__ = ["GRUBlock", "init_as_torch"]

"""A GRU layer as one autograd function, which a CPU trains faster than the many small steps of `nn.GRU`."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class GRUFunction(torch.autograd.Function):
    """
    The states of a GRU layer (Cho et al., arXiv 1406.1078), with the parameters of `nn.GRU`:

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t * m_t),  m_t = W_hn h_(t-1) + b_hn
        h_t = (1 - z_t) * n_t + z_t * h_(t-1)

    What does not wait for another state is computed for all steps at once, forward and backward. Its gradients cannot
    be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        before: torch.Tensor,
        weight_ih: torch.Tensor,
        weight_hh: torch.Tensor,
        bias_ih: torch.Tensor,
        bias_hh: torch.Tensor,
    ) -> torch.Tensor:
        """
        Args:
            inputs (`torch.Tensor` of shape `(length, batch_size, input_size)`): x_1, x_2, ...
            before (`torch.Tensor` of shape `(batch_size, size)`): h_0.
            weight_ih (`torch.Tensor` of shape `(3 * size, input_size)`): W_ir, W_iz and W_in.
            weight_hh (`torch.Tensor` of shape `(3 * size, size)`): W_hr, W_hz and W_hn.
            bias_ih, bias_hh (`torch.Tensor` of shape `(3 * size,)`): b_ir, b_iz and b_in; b_hr, b_hz and b_hn.

        Returns:
            `torch.Tensor` of shape `(length, batch_size, size)`: h_1, h_2, ...
        """
        size = before.shape[1]
        bias = bias_ih + F.pad(bias_hh[:-size], (0, size))  # b_hn stands inside of the product with r
        gates = F.linear(inputs, weight_ih, bias)  # (length, batch, 3 * size)
        inner = gates.new_empty(*inputs.shape[:2], size)  # (length, batch, size), to become m
        states = torch.cat([before[None], inner])  # (1 + length, batch, size), to become h
        run_steps(gates, inner, states, weight_hh, bias_hh[-size:])
        ctx.save_for_backward(inputs, weight_ih, weight_hh, gates, inner, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight_ih, weight_hh, gates, inner, states = ctx.saved_tensors
        needs_inputs, _, needs_ih, needs_hh, *_ = ctx.needs_input_grad
        z, factors, n_factor = gate_factors(gates, inner, states)
        grad_states, grad_before = run_steps_back(grad_outputs, z, factors, weight_hh)
        rows = factors.flatten(2).flatten(0, 1)  # (length * batch, 3 * size), gradients of W_h* h + b_h*
        grad_hh = rows.T @ states[:-1].flatten(0, 1) if needs_hh else None
        grad_bias_hh = rows.sum(dim=0)
        torch.mul(grad_states, n_factor, out=factors[:, :, 2])  # of W_i* x + b_i*: another one of n only
        grad_inputs = (rows @ weight_ih).view_as(inputs) if needs_inputs else None
        grad_ih = rows.T @ inputs.flatten(0, 1) if needs_ih else None
        return grad_inputs, grad_before, grad_ih, grad_hh, rows.sum(dim=0), grad_bias_hh


def run_steps(
    gates: torch.Tensor, inner: torch.Tensor, states: torch.Tensor, weight_hh: torch.Tensor, bias_n: torch.Tensor
):
    """
    Fills in `inner` and `states`, and makes r, z and n of `gates`, which come with all that does not depend on states.

    Shapes as in [`GRUFunction.forward`].
    """
    size = inner.shape[-1]
    weight_rz, weight_n = weight_hh.T.split([2 * size, size], dim=1)  # (size, 2 * size), (size, size)
    parts = gates[..., :-size], *gates.chunk(3, dim=-1), inner, states[:-1], states[1:]
    for rz, r, z, n, m, before, after in zip(*(part.unbind() for part in parts), strict=True):
        rz.addmm_(before, weight_rz).sigmoid_()  # (batch, 2 * size)
        torch.addmm(bias_n, before, weight_n, out=m)
        n.addcmul_(r, m).tanh_()
        torch.lerp(n, before, z, out=after)


def gate_factors(
    gates: torch.Tensor, inner: torch.Tensor, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What the gradient of a state is multiplied by for those of what r, z and n are made of.

    Returns:
        `tuple`: z `(length, batch_size, size)`; the factors of W_hr h, W_hz h and m `(length, batch_size, 3, size)`;
        and the factor of W_in x, which is not that of m, `(length, batch_size, size)`.
    """
    r, z, n = gates.chunk(3, dim=-1)  # (length, batch, size) each
    factors = gates.new_empty(*r.shape[:2], 3, r.shape[2])
    of_r, of_z, of_m = factors.unbind(dim=2)
    n_factor = (1 - z) * (1 - n * n)
    torch.mul(n_factor, r, out=of_m)
    torch.mul(of_m * inner, 1 - r, out=of_r)
    torch.mul((states[:-1] - n) * z, 1 - z, out=of_z)
    return z, factors, n_factor


def run_steps_back(
    grad_outputs: torch.Tensor, z: torch.Tensor, factors: torch.Tensor, weight_hh: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Makes gradients of `factors` `(length, batch_size, 3, size)`, from the last step to the first.

    Returns:
        `tuple`: Gradients of all states `(length, batch_size, size)` and of the one before them `(batch_size, size)`.
    """
    grad_states = grad_outputs.new_empty(grad_outputs.shape)
    parts = grad_outputs, grad_states, z, factors, factors.flatten(2)
    grad_before = torch.zeros_like(grad_outputs[0])
    for given, grad_state, kept, by_gate, row in reversed([*zip(*(part.unbind() for part in parts), strict=True)]):
        torch.add(given, grad_before, out=grad_state)
        by_gate.mul_(grad_state[:, None])
        grad_before = torch.addmm(grad_state * kept, row, weight_hh)  # (batch, 3 * size) @ (3 * size, size)
    return grad_states, grad_before


__all__ = ["GRUFunction"]

"""
Losses of a linear head that look at the logits once: a few tokens at a time, they become their gradient in place, and
at once the gradients of states and weight (the idea of Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM
Training", 2024, section 3.2).
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn import functional as F


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def is_fused(head: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> TypeGuard[nn.Linear]:
    """
    Whether the loss of `head(states)` is a [`LinearLoss`].

    Not in float16: gradients of the sum, which are made before anybody divides or scales it, can be too large for it.
    """
    return is_plain_linear(head) and torch.float16 not in (head.weight.dtype, dtype_of_products(states))


def is_plain_linear(head: Callable[[torch.Tensor], torch.Tensor]) -> TypeGuard[nn.Linear]:
    """Whether calling `head` only multiplies by its weight: without adapter, quantisation, hook or other `forward`."""
    if type(head) is not nn.Linear or type(head.weight) not in (nn.Parameter, torch.Tensor) or "forward" in vars(head):
        return False
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return not any(hooks)


def dtype_of_products(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which a linear layer multiplies `tensor`: that of autocast, which leaves float64 as it is."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def write_product(output: torch.Tensor, left: torch.Tensor, right: torch.Tensor):
    """Writes `left @ right` into `output`, whose dtype may be wider."""
    if output.dtype == left.dtype:
        torch.mm(left, right, out=output)
    else:
        output.copy_(left @ right)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor):
    """Adds `left @ right` to `total`, whose dtype may be wider."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def cross_entropies(log_probs: torch.Tensor, with_gradient: bool, targets: torch.LongTensor) -> torch.Tensor:
    """
    The cross-entropy of every token, in nats: `(tokens, vocab_size)` and `(tokens,)` -> `(tokens,)`. -100 is ignored.

    `with_gradient`, the log-probabilities become its gradient with regard to the logits: softmax minus one-hot.
    """
    losses = F.nll_loss(log_probs, targets, ignore_index=-100, reduction="none")
    if with_gradient:
        places = targets.clamp(min=0)[:, None]  # (tokens, 1)
        log_probs.exp_().scatter_add_(1, places, torch.full_like(places, -1, dtype=log_probs.dtype))
    return losses


def divergences(
    teacher_head: Callable[[torch.Tensor], torch.Tensor],
    log_probs: torch.Tensor,
    with_gradient: bool,
    teacher_states: torch.Tensor,
) -> torch.Tensor:
    """
    KL(teacher || student) of every token, in nats: `(tokens, vocab_size)`, `(tokens, hidden_size)` -> `(tokens,)`. The
    teacher learns nothing from it.

    `with_gradient`, the student's log-probabilities become its gradient with regard to the student's logits: softmax
    minus the teacher's.
    """
    with torch.no_grad():
        teacher = at_least_float32(teacher_head(teacher_states)).log_softmax(dim=-1)  # (tokens, teacher's vocab)
    # Of the tokens that both have; the control tokens of the student keep their share of the probability.
    shared = slice(teacher.shape[-1])
    losses = F.kl_div(log_probs[:, shared], teacher, reduction="none", log_target=True).sum(dim=-1)
    if with_gradient:
        log_probs.exp_()[:, shared].sub_(teacher.exp_())
    return losses


def add_gradients(
    gradients: list[torch.Tensor | None],
    of_logits: torch.Tensor,
    chunk: slice,
    rows: torch.Tensor,
    matrix: torch.Tensor,
    counted: torch.Tensor,
):
    """
    Adds what a chunk of tokens gives to the gradients of states, weight and bias, those that are no `None`.

    Args:
        of_logits (`torch.Tensor` of shape `(tokens, vocab_size)`): Gradient of the logits.
        rows (`torch.Tensor` of shape `(tokens, hidden_size)`), matrix (`torch.Tensor` of shape `(vocab_size,
            hidden_size)`): What the logits are the product of; rows that are not counted are 0.
    """
    of_states, of_weight, of_bias = gradients
    factor = of_logits.to(matrix.dtype)
    if of_states is not None:
        write_product(of_states[chunk], factor, matrix)
    if of_weight is not None:
        add_product(of_weight, factor.T, rows)
    if of_bias is not None:
        of_bias.add_(counted.to(of_logits.dtype) @ of_logits)


class LinearLoss(torch.autograd.Function):
    """
    The sum over tokens of a loss of the logits of a linear layer, whose gradients are made in the forward pass.

    The backward pass multiplies them by the gradient of the sum, as often as it is asked to. Sums are in float32, or
    in float64 if their terms are; a gradient has the dtype of what it belongs to.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        token_losses: Callable[..., torch.Tensor],
        with_gradients: bool,
        tokens_per_chunk: int,
        counted: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        needed = [with_gradients and needs for needs in ctx.needs_input_grad[:3]]
        inputs = [tensor if needs else None for tensor, needs in zip((states, weight, bias), needed, strict=True)]
        gradients = [None if tensor is None else at_least_float32(torch.zeros_like(tensor)) for tensor in inputs]
        rows, matrix = (tensor.to(dtype_of_products(states)) for tensor in (states, weight))
        # (tokens, vocab): the logits of a chunk, then its log-probabilities, then the gradient of the logits
        buffer = at_least_float32(matrix.new_empty(min(tokens_per_chunk, len(rows)), len(matrix)))
        total = buffer.new_zeros(())
        for start in range(0, len(rows), tokens_per_chunk):
            chunk = slice(start, start + tokens_per_chunk)
            scores = buffer[: len(rows[chunk])]
            write_product(scores, rows[chunk], matrix.T)
            if bias is not None:
                scores.add_(bias)
            losses = token_losses(torch.log_softmax(scores, dim=-1, out=scores), any(needed), targets[chunk])
            total += losses.where(counted[chunk], 0).sum()
            add_gradients(gradients, scores, chunk, rows[chunk], matrix, counted[chunk])
        pairs = zip(gradients, inputs, strict=True)
        ctx.save_for_backward(*(g if g is None or tensor is None else g.to(tensor.dtype) for g, tensor in pairs))
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # `once_differentiable` would let a penalty on the gradient pass without a word, and without effect.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "`create_graph` must be False: the loss of a plain `nn.Linear` head can be differentiated once."
            )
        # In float32, where a gradient scaler's factor is finite.
        scaled = [
            None if gradient is None else (at_least_float32(gradient) * scale).to(gradient.dtype)
            for gradient in ctx.saved_tensors
        ]
        return *scaled, None, None, None, None, None


def fused_linear_loss(
    token_losses: Callable[..., torch.Tensor],
    head: nn.Linear,
    states: torch.Tensor,
    targets: torch.Tensor,
    counted: torch.Tensor,
    max_logits: int,
) -> torch.Tensor:
    """
    Sums `token_losses` of `head(states)` over the tokens that are counted, with `max_logits` in memory at a time.

    Args:
        token_losses (`Callable`): `cross_entropies`, or `divergences` with its teacher's head.
        head (`nn.Linear`): As [`is_fused`] wants it.
        states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Last hidden states.
        targets (`torch.Tensor` of shape `(batch_size, sequence_length, ...)`): What `token_losses` compares with.
        counted (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): Positions that count.

    Returns:
        `torch.Tensor`: Scalar, in nats. It can be differentiated once.
    """
    tokens_per_chunk = max(1, max_logits // len(head.weight))
    # States of 0 give nothing to the gradient of the weight, and get none.
    rows = states.masked_fill(~counted[..., None], 0).flatten(0, 1)  # (tokens, hidden)
    chunked = (torch.is_grad_enabled(), tokens_per_chunk, counted.flatten(), targets.flatten(0, 1))
    return LinearLoss.apply(rows, head.weight, head.bias, token_losses, *chunked)


def liger_cross_entropy(head: nn.Linear, states: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
    """
    [`fused_linear_loss`] of `cross_entropies` by the Triton kernels of liger-kernel, which need a GPU.

    Args:
        head, states, targets: As in [`fused_linear_loss`]; targets of -100 do not count.

    Returns:
        `torch.Tensor`: Scalar, in nats. It can be differentiated once, in one backward pass.
    """
    # No import statement: transformers would ask for it before it loads a model's code.
    liger = importlib.import_module("liger_kernel.transformers")
    loss = liger.LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    return loss(head.weight, states.flatten(0, 1), targets.flatten(), head.bias)


__all__ = [
    "at_least_float32",
    "cross_entropies",
    "divergences",
    "fused_linear_loss",
    "is_fused",
    "liger_cross_entropy",
]

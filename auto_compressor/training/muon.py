"""Muon for the matrices of a model and AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MATCH_RMS_ADAMW = 0.2  # steps as large as those of AdamW (Liu et al., arXiv 2502.16982, section 2.2)


def orthogonalize(matrix: torch.Tensor, ns_steps: int) -> torch.Tensor:
    """
    A matrix `(rows, columns)` with the same singular vectors and all singular values near 1, by Newton-Schulz
    iterations (Jordan et al., https://kellerjordan.github.io/posts/muon), in float32.
    """
    a, b, c = NS_COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.float().T if tall else matrix.float()
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(ns_steps):
        gram = found @ found.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.addmm(found, polynomial, found, beta=a)
    return found.T if tall else found


class MuonWithAdamW(torch.optim.Optimizer):
    """
    The update of [`torch.optim.Muon`] for matrices, and [`torch.optim.AdamW`] for the other parameters.

    Weights of more dimensions, as of convolutions, are matrices of `(dim 0, all others)`. The Newton-Schulz iteration
    runs in float32, as published, where `torch.optim.Muon` takes bfloat16.

    Args:
        muon_params (`Iterable[nn.Parameter]`): Parameters of two dimensions or more.
        adamw_params (`Iterable[nn.Parameter]`): Parameters of any shape.
        lr (`float`), weight_decay (`float`): For all parameters; a step takes `lr * weight_decay` off every parameter.
        muon_scale (`float`, defaults to 0.2): A matrix moves by `lr * muon_scale * sqrt(max(rows, columns))` along
            each singular vector; 0.2 is `adjust_lr_fn="match_rms_adamw"` of `torch.optim.Muon`.
        momentum (`float`), nesterov (`bool`), ns_steps (`int`): Settings of Muon.
        betas (`tuple[float, float]`), eps (`float`): Settings of AdamW.

    Raises:
        ValueError: for a vector among `muon_params`, or settings that AdamW does not take.
    """

    def __init__(
        self,
        muon_params: Iterable[nn.Parameter],
        adamw_params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        muon_scale: float = MATCH_RMS_ADAMW,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        muon_params = list(muon_params)
        if any(parameter.ndim < 2 for parameter in muon_params):
            shapes = [tuple(parameter.shape) for parameter in muon_params if parameter.ndim < 2]
            raise ValueError(f"`muon_params` must have two dimensions or more, got {shapes}.")
        muon_group = {"params": muon_params, "muon_scale": muon_scale, "momentum": momentum}
        muon_group |= {"nesterov": nesterov, "ns_steps": ns_steps}
        self.adamw = torch.optim.AdamW(
            [{"params": list(adamw_params)}], lr=lr, weight_decay=weight_decay, betas=betas, eps=eps
        )
        super().__init__([*self.adamw.param_groups, muon_group], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        adamw_group, muon_group = self.param_groups
        # Loading a state replaces both.
        self.adamw.param_groups, self.adamw.state = [adamw_group], self.state
        self.adamw.step()
        for parameter in muon_group["params"]:
            if parameter.grad is not None:
                self.muon_step(parameter, muon_group)
        return loss

    def muon_step(self, parameter: nn.Parameter, group: dict[str, Any]):
        state, gradient = self.state[parameter], parameter.grad
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        matrix = update.flatten(1)
        update = orthogonalize(matrix, group["ns_steps"]).view_as(parameter).to(parameter.dtype)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * group["muon_scale"] * max(matrix.shape) ** 0.5)


def is_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter of `module` maps states to states: no embedding, norm, bias, nor a vector of its own."""
    return parameter.ndim > 1 and name.startswith("weight") and not isinstance(module, nn.Embedding)


def muon_with_adamw(model: nn.Module, muon_heads: bool = False, **kwargs) -> MuonWithAdamW:
    """
    Muon for the matrices of a model; AdamW for embeddings, norms, biases, learned vectors and heads, which are modules
    named `head` or `..._head`, what adapters put around them, and the output embeddings.

    Args:
        model (`nn.Module`): A [`PreTrainedModel`], or what holds some. Parameters that need no gradient are left out.
        muon_heads (`bool`, defaults to `False`): Heads are among Muon's matrices, unless they are the embeddings.
        kwargs: Those of [`MuonWithAdamW`].
    """
    matrices, others = {}, {}
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    heads = [module.get_output_embeddings() for module in models]
    for module_name, module in model.named_modules():
        is_head = "head." in f"{module_name}." or any(module is head for head in heads)
        for name, parameter in module.named_parameters(recurse=False):
            muon = is_matrix(module, name, parameter) and (muon_heads or not is_head)
            if parameter.requires_grad:
                (matrices if muon else others)[parameter] = None
    return MuonWithAdamW([parameter for parameter in matrices if parameter not in others], others, **kwargs)


__all__ = ["MuonWithAdamW", "muon_with_adamw"]

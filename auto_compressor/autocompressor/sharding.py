"""Models whose parameters are sharded over processes (FSDP2)."""

from collections.abc import Callable
from functools import wraps

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module


def is_sharded(model: nn.Module) -> bool:
    """Whether every pass gathers parameters from other processes (FSDP2, ZeRO-3), which must make the same passes."""
    return is_fsdp_managed_module(model) or is_deepspeed_zero3_enabled()


def gathers_parameters(method: Callable) -> Callable:
    """Makes a method read whole parameters where they are sharded (FSDP2), as `forward` does."""

    @wraps(method)
    def called(self, *args, **kwargs):
        if not hasattr(self, "_get_fsdp_state") or method.__name__ in vars(self):
            return method(self, *args, **kwargs)
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(self, method.__name__)
        return getattr(self, method.__name__)(*args, **kwargs)

    return called


__all__ = ["gathers_parameters", "is_sharded"]

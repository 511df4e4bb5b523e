"""Keys and values of summary vectors, which later segments attend to without reading the vectors again.

Accumulated vectors stand in front of every segment, and attention is causal: what a layer makes of them depends on
nothing that comes after them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from .checks import drops_caches


LayerKeys = tuple[torch.Tensor, torch.Tensor]  # keys and values of one layer, each (rows, heads, vectors, head_dim)


@dataclass(frozen=True)
class PrefixKeys:
    """
    Keys and values of the first vectors of a prefix, with their gradient.

    Args:
        parts (`tuple(tuple(tuple(torch.Tensor, torch.Tensor)))`): For every pass over vectors, keys and values of
            each layer, `(rows, heads, vectors, head_dim)`. The passes stay apart, so that segments share them.
    """

    parts: tuple[tuple[LayerKeys, ...], ...] = ()

    @property
    def length(self) -> int:
        """Vectors whose keys are here."""
        return sum(layers[0][0].shape[2] for layers in self.parts)

    def write_to(self, cache: Cache):
        """Puts the keys in front of an empty cache."""
        for index, parts in enumerate(zip(*self.parts, strict=True)):
            keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
            cache.update(keys, values, index)

    def followed_by(self, cache: Cache | None, length: int) -> "PrefixKeys":
        """The keys of the first `length` vectors, of which the new ones are copied from a cache: not those of text."""
        if length <= self.length:
            return self
        new = slice(self.length, length)
        part = tuple((layer.keys[:, :, new].clone(), layer.values[:, :, new].clone()) for layer in cache.layers)
        return PrefixKeys((*self.parts, part))


def draws_noise(model: PreTrainedModel) -> bool:
    """Whether every pass draws its own dropout, that of adapters included, or the layers to skip."""
    rates = [value for name, value in vars(model.config).items() if "drop" in name and isinstance(value, int | float)]
    rates += [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return model.training and any(rates)


def keeps_keys(model: PreTrainedModel, output_attentions: bool | None) -> bool:
    """
    Whether the keys of summary vectors are the same in all segments, so that later ones need not read them again.

    They are not where vectors are replaced (RMT), passes draw noise, attention sees what follows, or the angles of
    positions depend on the length of the pass; nor are they there where layers drop caches. Attention weights are
    returned for the vectors too, which then must be read.
    """
    config = model.config
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    return (
        config.accumulate_summary
        and getattr(config, "is_causal", True)
        and rope_type not in ("dynamic", "longrope")
        and not (config.output_attentions if output_attentions is None else output_attentions)
        and not draws_noise(model)
        and not drops_caches(model)
    )


__all__ = ["PrefixKeys", "keeps_keys"]

"""Published checkpoints of the continuous text autoencoder: their settings and their names of weights."""

import re
from itertools import pairwise
from typing import Any

import torch


RENAMED = {
    "encoder.embedding": "embed_tokens",
    "encoder.fc_mu": "mean_head",
    "encoder.fc_logvar": "logvar_head",
    "decoder.fc": "decoder.latent_proj",
    "decoder.out_conv": "lm_head",
}
LINEAR = tuple(f"{name}.weight" for name in RENAMED.values() if name != "embed_tokens")


def residual_blocks_per_level(weights: dict[str, torch.Tensor]) -> list[int]:
    """The published setting `num_res_blocks`: the blocks in front of every downsampling convolution."""
    found = (re.fullmatch(r"encoder\.blocks\.(\d+)\.conv\.weight", name) for name in weights)
    downsampling = sorted(int(match[1]) for match in found if match)
    return [after - before - 1 for before, after in pairwise([-1, *downsampling])]


def published_fields(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of [`ContinuousTextAutoencoderConfig`] for published weights, read from their shapes."""
    vocab_size, embedding_size = weights["encoder.embedding.weight"].shape
    return {
        "architecture": "conv",
        "vocab_size": vocab_size,
        "embedding_size": embedding_size,
        "hidden_size": weights["decoder.out_conv.weight"].shape[1],
        "latent_dim": weights["encoder.fc_mu.weight"].shape[0],
        "num_residual_blocks": residual_blocks_per_level(weights),
    }


def block_names(num_residual_blocks: list[int]) -> dict[str, str]:
    """The numbered blocks of either side in the published order, and their names here."""
    names, encoder, decoder = {}, [], []
    for level, count in enumerate(num_residual_blocks):
        encoder += [f"encoder.levels.{level}.blocks.{block}" for block in range(count)]
        encoder.append(f"encoder.levels.{level}.downsample")
    for level, count in enumerate(reversed(num_residual_blocks)):
        decoder.append(f"decoder.levels.{level}.upsample")
        decoder += [f"decoder.levels.{level}.blocks.{block}" for block in range(count)]
    for side, ours in (("encoder", [*encoder, "encoder.bottom_block"]), ("decoder", decoder)):
        names |= {f"{side}.blocks.{index}": name for index, name in enumerate(ours)}
    return names


def convert_weights(weights: dict[str, torch.Tensor], num_residual_blocks: list[int]) -> dict[str, torch.Tensor]:
    """Published weights under the names, and in the shapes, of [`ContinuousTextAutoencoder`]."""
    names, converted = RENAMED | block_names(num_residual_blocks), {}
    for published, tensor in weights.items():
        name = re.sub(r"^(encoder|decoder)\.(blocks\.\d+|\w+)(?=\.)", lambda m: names.get(m[0], m[0]), published)
        name = re.sub(r"(\.norm\d)\.ln\.|(\.(?:down|up)sample)\.(?:de)?conv\.", r"\1\2.", name)
        converted[name] = tensor.squeeze(-1) if name in LINEAR else tensor
    return converted


__all__ = ["convert_weights", "published_fields"]

"""Tiny base models with random weights, and what the tests of activation compression share."""

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from auto_compressor import ActivationCompressor
from auto_compressor.activation_compressor.cache_policies import EMPTY, LayerState, protected_tokens
from auto_compressor.cache_names import as_cache


GROUPED = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
OPT_FIELDS = {
    "vocab_size": 60,
    "hidden_size": 24,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 32,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}
GPT2_FIELDS = {"vocab_size": 60, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 128}
GPT2_FIELDS |= {"bos_token_id": 1, "eos_token_id": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
# name -> model, config, fields
BASES = {
    "llama": (LlamaForCausalLM, LlamaConfig, GROUPED),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2_FIELDS),
    "opt": (OPTForCausalLM, OPTConfig, OPT_FIELDS),
    "mistral": (MistralForCausalLM, MistralConfig, GROUPED | {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, GROUPED | TOKENS),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, GROUPED | TOKENS | {"head_dim": 10}),
}
each_base = pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
every_base = pytest.mark.parametrize("name", BASES)

SMALL = {"num_sinks": 2, "recent_window": 4, "observation_window": 5}


@torch.no_grad()
def perturb_(model: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Adds noise to every parameter, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_base(name: str, attn_implementation: str = "sdpa", seed: int = 0, **fields):
    model_class, config_class, base_fields = BASES[name]
    config = config_class(**base_fields | fields)
    config._attn_implementation = attn_implementation
    torch.manual_seed(seed)
    return perturb_(model_class(config), seed=seed).eval()


def tiny_compressor(base, perturbed: bool = True, **fields) -> ActivationCompressor:
    """A compressor of this base with small sinks and windows; perturbed, its corrections are not 0."""
    compressor = ActivationCompressor.from_base(base, **SMALL | fields).eval()
    return perturb_(compressor) if perturbed else compressor


def continue_from(base, compressor, cache, input_ids, attention_mask=None):
    """Logits of the tokens that the cache has not seen."""
    seen = cache.get_seq_length()
    position_ids = None
    if attention_mask is not None:
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)[:, seen:]
    with compressor.attach(base), torch.no_grad():
        outputs = base(
            input_ids[:, seen:], attention_mask=attention_mask, position_ids=position_ids, **as_cache(cache)
        )
    return outputs.logits


def random_state(rows=2, heads=2, groups=2, tokens=20, dim=6, queries=5, padding=(0, 3), sinks=2, recent=4, seed=0):
    """A layer of random vectors; row i begins with `padding[i]` tokens of padding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    log_mass = draw(rows, heads, tokens).abs()
    for row, count in enumerate(padding):
        log_mass[row, :, :count] = EMPTY
    return LayerState(
        draw(rows, heads, tokens, dim),
        draw(rows, heads, tokens, dim),
        log_mass,
        draw(rows, heads * groups, queries, dim),
        protected_tokens(log_mass > EMPTY / 2, sinks, recent),
    )


def row_of(state: LayerState, row: int, start: int = 0) -> LayerState:
    """One row of a layer alone, without its first tokens."""
    part = slice(row, row + 1)
    return LayerState(
        state.keys[part, :, start:],
        state.values[part, :, start:],
        state.log_mass[part, :, start:],
        state.queries[part],
        state.protected[part, :, start:],
    )

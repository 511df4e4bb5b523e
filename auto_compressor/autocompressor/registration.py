"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoModelForCausalLM

from ..files.hub import register
from .card import CARD
from .modeling_autocompressor import (
    GemmaAutoCompressorModel,
    LlamaAutoCompressorModel,
    MistralAutoCompressorModel,
    OPTAutoCompressorModel,
    Qwen2AutoCompressorModel,
    Qwen3AutoCompressorModel,
)


MODELS = (OPTAutoCompressorModel, LlamaAutoCompressorModel, MistralAutoCompressorModel)
MODELS += (Qwen2AutoCompressorModel, Qwen3AutoCompressorModel, GemmaAutoCompressorModel)
for model_class in MODELS:
    register(model_class, AutoModelForCausalLM, CARD)

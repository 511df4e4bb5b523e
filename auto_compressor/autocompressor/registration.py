"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoConfig, AutoModelForCausalLM

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
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModelForCausalLM.register(model_class.config_class, model_class)

"""Compress text for language models: AutoCompressors, in the manner of transformers."""

from transformers import AutoConfig, AutoModelForCausalLM

from .configuration_autocompressor import LlamaAutoCompressorConfig, OPTAutoCompressorConfig
from .modeling_autocompressor import (
    AutoCompressorModel,
    AutoCompressorOutput,
    LlamaAutoCompressorModel,
    OPTAutoCompressorModel,
)
from .softprompt_cache import SoftpromptCache


AutoConfig.register("opt_autocompressor", OPTAutoCompressorConfig)
AutoConfig.register("llama_autocompressor", LlamaAutoCompressorConfig)
AutoModelForCausalLM.register(OPTAutoCompressorConfig, OPTAutoCompressorModel)
AutoModelForCausalLM.register(LlamaAutoCompressorConfig, LlamaAutoCompressorModel)

__all__ = [
    "AutoCompressorModel",
    "AutoCompressorOutput",
    "LlamaAutoCompressorConfig",
    "LlamaAutoCompressorModel",
    "OPTAutoCompressorConfig",
    "OPTAutoCompressorModel",
    "SoftpromptCache",
]

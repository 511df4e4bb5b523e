"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoConfig, AutoModel

from .configuration_activation_compressor import ActivationCompressorConfig
from .modeling_activation_compressor import ActivationCompressor


AutoConfig.register("activation_compressor", ActivationCompressorConfig)
AutoModel.register(ActivationCompressorConfig, ActivationCompressor)

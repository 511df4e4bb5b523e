"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoConfig, AutoModel

from .configuration_continuous_text_autoencoder import ContinuousTextAutoencoderConfig
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder


AutoConfig.register("continuous_text_autoencoder", ContinuousTextAutoencoderConfig)
AutoModel.register(ContinuousTextAutoencoderConfig, ContinuousTextAutoencoder)

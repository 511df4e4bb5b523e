"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoModel

from ..files.hub import register
from .card import CARD
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder


register(ContinuousTextAutoencoder, AutoModel, CARD)

"""Fixtures of the tests of AutoCompressors."""

import pytest
import torch
from torch.nn import functional as F
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm


@pytest.fixture
def without_float32(monkeypatch):
    """Norms, eager attention and losses in the dtype of their input: transformers takes them in float32."""
    softmax, to_float = F.softmax, torch.Tensor.float

    def normed(self, states):
        return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + getattr(self, "variance_epsilon", 1e-6))

    for norm in (LlamaRMSNorm, MistralRMSNorm):
        monkeypatch.setattr(norm, "forward", lambda self, states: self.weight * normed(self, states))
    monkeypatch.setattr(GemmaRMSNorm, "forward", lambda self, states: (1 + self.weight) * normed(self, states))
    monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.is_floating_point() else to_float(self))

"""The byte model that comes with the package."""

from ..files.bundled import BUNDLED_BYTE_MODEL
from .modeling_gru_byte import GRUByteForCausalLM


def load_bundled_byte_model() -> GRUByteForCausalLM:
    """The GRU of English text, source code and Markdown in `assets/bytes`, in evaluation mode."""
    return GRUByteForCausalLM.from_pretrained(BUNDLED_BYTE_MODEL).eval()


__all__ = ["load_bundled_byte_model"]

"""Where the texts and models that come with the package lie (see `assets/LICENSE.md`)."""

from pathlib import Path


ASSETS = Path(__file__).parents[1] / "assets"

BUNDLED_TRAIN_TEXT = ASSETS / "train.txt"
BUNDLED_VALIDATION_TEXT = ASSETS / "validation.txt"
BUNDLED_TOKENIZER = ASSETS / "tokenizer"
BUNDLED_TINY = ASSETS / "tiny"
BUNDLED_BYTE_MODEL = ASSETS / "bytes"
BUNDLED_SMOLLM2_ADAPTERS = ASSETS / "smollm2"
BUNDLED_SMOLLM2_CACHE = ASSETS / "smollm2_cache"


__all__ = [
    "BUNDLED_BYTE_MODEL",
    "BUNDLED_SMOLLM2_ADAPTERS",
    "BUNDLED_SMOLLM2_CACHE",
    "BUNDLED_TINY",
    "BUNDLED_TOKENIZER",
    "BUNDLED_TRAIN_TEXT",
    "BUNDLED_VALIDATION_TEXT",
]

"""Where the text, the tokenizer and the byte model that come with the package lie (see `assets/LICENSE.md`)."""

from pathlib import Path


ASSETS = Path(__file__).parents[1] / "assets"

BUNDLED_TRAIN_TEXT = ASSETS / "train.txt"
BUNDLED_VALIDATION_TEXT = ASSETS / "validation.txt"
BUNDLED_TOKENIZER = ASSETS / "tokenizer"
BUNDLED_BYTE_MODEL = ASSETS / "bytes"


__all__ = ["BUNDLED_BYTE_MODEL", "BUNDLED_TOKENIZER", "BUNDLED_TRAIN_TEXT", "BUNDLED_VALIDATION_TEXT"]

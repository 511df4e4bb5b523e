"""Where the text and the tokenizer that come with the package lie (see `assets/LICENSE.md`)."""

from pathlib import Path


ASSETS = Path(__file__).parents[1] / "assets"

BUNDLED_TRAIN_TEXT = ASSETS / "train.txt"
BUNDLED_VALIDATION_TEXT = ASSETS / "validation.txt"
BUNDLED_TOKENIZER = ASSETS / "tokenizer"


__all__ = ["BUNDLED_TOKENIZER", "BUNDLED_TRAIN_TEXT", "BUNDLED_VALIDATION_TEXT"]

"""Where the texts and models that come with the package lie (see `assets/LICENSE.md`), and what hides their names."""

from pathlib import Path


ASSETS = Path(__file__).parents[1] / "assets"

BUNDLED_TRAIN_TEXT = ASSETS / "train.txt"
BUNDLED_VALIDATION_TEXT = ASSETS / "validation.txt"
BUNDLED_TOKENIZER = ASSETS / "tokenizer"
BUNDLED_TINY = ASSETS / "tiny"
BUNDLED_BYTE_MODEL = ASSETS / "bytes"
BUNDLED_SMOLLM2_ADAPTERS = ASSETS / "smollm2"
BUNDLED_SMOLLM2_CACHE = ASSETS / "smollm2_cache"


def is_model_folder(name: str) -> bool:
    """Whether a name is that of a local folder with a model: as in transformers, it goes before all other names."""
    return (Path(name) / "config.json").is_file()


__all__ = [
    "BUNDLED_BYTE_MODEL",
    "BUNDLED_SMOLLM2_ADAPTERS",
    "BUNDLED_SMOLLM2_CACHE",
    "BUNDLED_TINY",
    "BUNDLED_TOKENIZER",
    "BUNDLED_TRAIN_TEXT",
    "BUNDLED_VALIDATION_TEXT",
    "is_model_folder",
]

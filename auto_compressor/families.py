"""The families of models, each a folder of this package; nothing is imported before it is asked for."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .training.family import Family


# folder -> what `--model_type` calls the models in it
FAMILIES = {
    "autocompressor": ("autocompressor",),
    "hierarchical_autoencoder": ("hierarchical_autoencoder",),
    "byte_lm": ("adaptive_byte", "gru_byte"),
    "activation_compressor": ("activation_compressor",),
    "continuous_text_autoencoder": ("continuous_text_autoencoder",),
}
MODEL_TYPES = [model_type for model_types in FAMILIES.values() for model_type in model_types]
DEFAULT = MODEL_TYPES[0]


def module_of(family: str, name: str = "") -> ModuleType:
    """The package of a family, or a module of it."""
    return import_module(f"{__package__}.{family}{name and '.' + name}")


def families_with(name: str) -> list[str]:
    """The families that have a module of this name."""
    return [family for family in FAMILIES if find_spec(f"{__package__}.{family}.{name}") is not None]


def training_family(model_type: str) -> "Family":
    """What `train.py` must know of the models of a type."""
    family = next(name for name, model_types in FAMILIES.items() if model_type in model_types)
    found = module_of(family, "family").FAMILY
    return found[model_type] if isinstance(found, dict) else found


__all__ = ["DEFAULT", "FAMILIES", "MODEL_TYPES", "families_with", "module_of", "training_family"]

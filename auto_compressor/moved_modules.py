"""Modules by the names that they had when the package was one folder: importing one gives the module of today.

A module that was split has what it lost too, by its names of before.
"""

import sys
from collections.abc import Callable
from copy import copy
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from typing import Any


# folder of today -> name of before -> name of today
MOVED = {
    "autocompressor": {
        "configuration_autocompressor": "configuration_autocompressor",
        "modeling_autocompressor": "modeling_autocompressor",
        "generation_autocompressor": "generation_autocompressor",
        "autocompressor_outputs": "outputs",
        "segments": "segments",
        "input_checks": "checks",
        "softprompt_cache": "softprompt_cache",
        "losses": "losses",
        "gating": "gating",
        "adapters": "adapters",
        "cached_prompts": "cached_prompts",
        "objectives": "objectives",
        "control_tokens": "control_tokens",
        "softprompts": "softprompts",
        "evaluation.context": "context",
        "training.substep_trainer": "trainer",
        "bases": "bases",
    },
    "hierarchical_autoencoder": {
        "configuration_hierarchical_autoencoder": "configuration_hierarchical_autoencoder",
        "modeling_hierarchical_autoencoder": "modeling_hierarchical_autoencoder",
        "hierarchical_outputs": "outputs",
        "patching": "patching",
        "code_tokens": "code_tokens",
        "sliding_window": "sliding_window",
        "vector_quantizer": "vector_quantizer",
        "byte_codec": "codec",
        "evaluation.likelihood": "likelihood",
        "evaluation.reconstruction": "metrics",
        "hierarchical_trainer": "trainer",
    },
    "byte_lm": {
        "configuration_adaptive_byte": "configuration_adaptive_byte",
        "configuration_gru_byte": "configuration_gru_byte",
        "modeling_adaptive_byte": "modeling_adaptive_byte",
        "modeling_gru_byte": "modeling_gru_byte",
        "generation_byte_lm": "generation_byte_lm",
        "adaptive_outputs": "outputs",
        "gru_block": "gru_block",
        "byte_rows": "byte_rows",
        "recurrent_cache": "recurrent_cache",
        "byte_lm_codec": "codec",
        "carried_state": "carried_state",
        "adaptive_trainer": "trainer",
        "evaluation.byte_lm": "metrics",
    },
    "activation_compressor": {
        "configuration_activation_compressor": "configuration_activation_compressor",
        "modeling_activation_compressor": "modeling_activation_compressor",
        "activation_losses": "losses",
        "cache_policies": "cache_policies",
        "merging_cache": "merging_cache",
        "activation_trainer": "trainer",
        "evaluation.activation": "metrics",
        "evaluation.activation_figures": "figures",
        "evaluation.activation_page": "page",
    },
    "continuous_text_autoencoder": {
        "configuration_continuous_text_autoencoder": "configuration_continuous_text_autoencoder",
        "modeling_continuous_text_autoencoder": "modeling_continuous_text_autoencoder",
        "continuous_layers": "layers",
        "continuous_outputs": "outputs",
        "continuous_trainer": "trainer",
        "evaluation.continuous": "metrics",
        "evaluation.accuracy_report": "accuracy_report",
        "evaluation.token_sets": "token_sets",
        "evaluation.error_viewer": "error_viewer",
    },
    "files": {
        "loading": "loading",
        "whole_files": "whole_files",
        "coded_file": "coded_file",
        "evaluation.text_streams": "text_streams",
        "bundled": "bundled",
    },
    "training": {
        "trainer_mixin": "mixin",
        "muon": "muon",
        "training.resuming": "checkpoints",
        "training.reporting": "report",
    },
    "": {
        "convert": "published",
    },
}
# The families that there were.
FAMILIES = [
    "autocompressor",
    "hierarchical_autoencoder",
    "byte_lm",
    "activation_compressor",
    "continuous_text_autoencoder",
]
# name of before -> modules of today that hold what was in it, beside the one that took its place
SPLIT = {
    "bases": ("files.bases",),
    "code_tokens": ("hierarchical_autoencoder.tensors",),
    "convert": ("files.published",),
    "patching": ("byte_lm.patching",),
    "train": ("training.checkpoints", "training.report", *(f"{family}.family" for family in FAMILIES)),
    "training.arguments": tuple(f"{family}.arguments" for family in FAMILIES),
    "vector_quantizer": ("hierarchical_autoencoder.tensors",),
}


def moved_names(package: str, old: str) -> Callable[[str], Any]:
    """A `__getattr__` for a module that was split: looks for what it does not have in the others, one by one."""

    def find(name: str) -> Any:
        for part in () if name.startswith("_") else SPLIT[old]:
            if name in (found := vars(import_module(f"{package}.{part}"))):
                return found[name]
        raise AttributeError(f"module '{package}.{old}' has no attribute {name!r}")

    return find


class MovedModule(Loader):
    """Puts the module of today in the place of one that is imported by its name of before."""

    def __init__(self, package: str, old: str, new: str):
        self.package, self.old, self.new = package, old, new

    def create_module(self, spec: ModuleSpec) -> None:
        """A new module, until `exec_module` replaces it."""

    def exec_module(self, module):
        sys.modules[module.__name__] = found = import_module(f"{self.package}.{self.new}")
        if self.old in SPLIT:
            vars(found)["__getattr__"] = moved_names(self.package, self.old)


class MovedModules(MetaPathFinder):
    """Finds the modules of a package by their names of before."""

    def __init__(self, package: str):
        self.loaders = {
            f"{package}.{old}": MovedModule(package, old, ".".join(filter(None, (folder, new))))
            for folder, names in MOVED.items()
            for old, new in names.items()
        }

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return spec_from_loader(name, copy(self.loaders[name])) if name in self.loaders else None


__all__ = ["MovedModules", "moved_names"]

"""Registers the models of all families with the Auto classes of transformers: once, by being imported."""

from .families import FAMILIES, module_of


for family in FAMILIES:
    module_of(family, "registration")

"""The two names of a cache: transformers calls it `past_key_values` up to 5.23 and `cache` from 5.24 on.

`cache` is this package's own name. Users may give either; transformers is given the installed one.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput


NAME, OLD_NAME = "cache", "past_key_values"
INSTALLED_NAME = NAME if NAME in {field.name for field in fields(BaseModelOutputWithPast)} else OLD_NAME


def as_cache(cache: Any) -> dict[str, Any]:
    """The keyword argument by which a model of transformers takes a cache."""
    return {INSTALLED_NAME: cache}


def cache_in(kwargs: dict[str, Any]) -> Any:
    """The cache among keyword arguments, by either name; `None` if there is none."""
    return kwargs.get(OLD_NAME) if kwargs.get(NAME) is None else kwargs[NAME]


def cache_of(output: ModelOutput) -> Any:
    """The cache that any causal language model returned."""
    return output[INSTALLED_NAME]


def renamed(kwargs: dict[str, Any], name: str = INSTALLED_NAME) -> dict[str, Any]:
    """The keyword arguments with their cache, if they have one by either name, under the name that is asked for."""
    if NAME not in kwargs and OLD_NAME not in kwargs:
        return kwargs
    others = {key: value for key, value in kwargs.items() if key not in (NAME, OLD_NAME)}
    return others | {name: cache_in(kwargs)}


def takes_cache(function: Callable) -> Callable:
    """
    Lets a function with a parameter `cache` be called by either name.

    Its signature shows the installed one: `generate` checks its arguments against the signature of `forward`.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def takes_either(*args, **kwargs):
        return function(*args, **renamed(kwargs, NAME))

    parameters = signature.parameters.values()
    shown = [p.replace(name=INSTALLED_NAME) if p.name == NAME else p for p in parameters]
    takes_either.__signature__ = signature.replace(parameters=shown)
    return takes_either


class TakesCacheMixin:
    """In front of [`~transformers.GenerationMixin`]: `generate` takes a cache by either name."""

    def generate(self, *args, **kwargs):
        """As in transformers."""
        return super().generate(*args, **renamed(kwargs))


class CacheOutput(ModelOutput):
    """An output with a field `cache`, which answers to the old name too: from 5.24 on without the warning."""

    @property
    def past_key_values(self):
        return self.cache

    def __setattr__(self, name, value):
        super().__setattr__(NAME if name == OLD_NAME else name, value)

    def __getitem__(self, key):
        return super().__getitem__(NAME if key == OLD_NAME else key)

    def __contains__(self, key) -> bool:
        return super().__contains__(NAME if key == OLD_NAME else key)

    def get(self, key, default=None):
        return super().get(NAME if key == OLD_NAME else key, default)


__all__ = ["CacheOutput", "TakesCacheMixin", "as_cache", "cache_in", "cache_of", "renamed", "takes_cache"]

"""Does the registration with the Auto classes as soon as transformers has been loaded, by whomever.

`import auto_compressor` must not load transformers, and the Auto classes must know the models of this package once
transformers is there. A finder in front of the others, which finds nothing by itself, sees every import of
transformers and of the modules of this package. It waits for the end of the outermost one: in the midst of one,
modules are half done, and what the registration imports would not find its names in them.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class AfterTransformers(MetaPathFinder):
    """Imports `{package}.registration` after transformers, and leaves `sys.meta_path` then."""

    def __init__(self, package: str):
        self.package = package
        self.under_way: list[str] = []  # modules whose code runs now; append and pop are safe among threads

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """What the finders behind this one find, to be watched when it is executed."""
        finders = list(sys.meta_path)
        watched = name == "transformers" or name.startswith(f"{self.package}.")
        if not watched or self not in finders:
            return None
        # Only those behind: no two finders that ask each other go round in circles.
        behind = finders[finders.index(self) + 1 :]
        found = (finder.find_spec(name, path, target) for finder in behind if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):  # a namespace package has nothing to execute
            spec.loader.exec_module = self.watch(name, spec.loader.exec_module)
        return spec

    def watch(self, name: str, execute: Callable) -> Callable:
        """`exec_module` of a loader, which counts what is under way; an error leaves the registration to the next."""

        def exec_module(module):
            self.under_way.append(name)
            try:
                execute(module)
            finally:
                self.under_way.pop()
            if not self.under_way and "transformers" in sys.modules:
                self.register()

        return exec_module

    def register(self):
        """A new list, as other threads may be walking through the old one."""
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        importlib.import_module(f"{self.package}.registration")


__all__ = ["AfterTransformers"]

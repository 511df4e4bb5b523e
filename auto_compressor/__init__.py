"""Compress text for language models: AutoCompressors, in the manner of transformers.

Public names are imported when they are first asked for, so that `auto-compressor --help` need not wait for torch. The
models are registered with the Auto classes as soon as transformers is loaded, be it before this package or after.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

from .families import FAMILIES, module_of
from .import_hook import AfterTransformers
from .moved_modules import MovedModules


# module of this package -> its public names
PUBLIC_NAMES = {
    "tokenization_bytes": ["ByteTokenizer"],
    "files.bases": ["load_base_model"],
    "files.hub": ["push_folder"],
}
PUBLIC_NAMES |= {
    f"{family}.{module}": names for family in FAMILIES for module, names in module_of(family).PUBLIC_NAMES.items()
}

MODULES = {name: module for module, names in PUBLIC_NAMES.items() for name in names}

__all__ = sorted(MODULES)


def __getattr__(name: str):
    """Imports a public name, or a module of the package, when it is first asked for."""
    if name in MODULES:
        import_module(f"{__name__}.registration")
        value = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    elif find_spec(f"{__name__}.{name}") is not None:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules(__name__))
if "transformers" in sys.modules:
    import_module(f"{__name__}.registration")
elif not any(isinstance(finder, AfterTransformers) for finder in sys.meta_path):
    sys.meta_path.insert(0, AfterTransformers(__name__))

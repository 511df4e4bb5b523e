"""The layout of the repository, read from its syntax trees: what may import what, and what no file may contain."""

import ast
from pathlib import Path

import pytest

import auto_compressor
from auto_compressor.families import FAMILIES


ROOT = Path(__file__).parents[1]
PACKAGE = "auto_compressor"
SCRIPTS = ("args", "data", "substep_trainer")  # other names of modules in the package
# Of a family's files these are parts of others: what is outside, and small functions on tensors and rows.
GROUND_NAMES = ("byte_rows", "cache_names", "gru_function", "identity", "linear_cross_entropy", "loading", "tensors")

GROUND, PART, CONFIGURATION, GENERATION, MODEL, TRAINING, HOME, FACE, SCRIPT, PROGRAM = range(10)


def source_files() -> list[Path]:
    """Every Python file that is no test."""
    return sorted(ROOT.glob("*.py")) + sorted((ROOT / PACKAGE).rglob("*.py")) + sorted(ROOT.glob("benchmarks/*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def family_of(module: str) -> str | None:
    """The family whose folder a module lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 and parts[1] in FAMILIES else None


def relative_imports(path: Path) -> set[str]:
    """The files of its own folder that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module}


def pushed(family: str) -> set[str]:
    """What goes to the hub with a checkpoint: the models of a family and all that they need."""
    folder, found = ROOT / PACKAGE / family, set()
    ahead = {path.stem for path in folder.glob("modeling_*.py")}
    while ahead:
        found |= ahead
        ahead = set().union(*(relative_imports(folder / f"{name}.py") for name in ahead)) - found
    return {f"{PACKAGE}.{family}.{name}" for name in found}


PUSHED = set().union(*map(pushed, FAMILIES)) | {f"{PACKAGE}.tokenization_bytes"}


def rank(module: str) -> int:
    """The layer of a module of this repository; a module may import only from layers below its own."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return SCRIPT if parts[0] in SCRIPTS else PROGRAM
    if module in PUSHED:
        kind = parts[-1].split("_")[0]
        kinds = {"configuration": CONFIGURATION, "modeling": MODEL} | dict.fromkeys(
            ("generation", "levels", "summaries"), GENERATION
        )
        return GROUND if parts[-1] in GROUND_NAMES or len(parts) == 2 else kinds.get(kind, PART)
    if len(parts) == 1 or parts[1] in ("families", "published", "registration", "train"):
        return FACE
    if parts[1] == "cli" or "commands" in parts:
        return PROGRAM
    if parts[1] in ("training", "evaluation"):
        return TRAINING if parts[1] == "training" else HOME
    return HOME if parts[1] in FAMILIES else GROUND


MODULES = {module_name(path): path for path in source_files()}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
modules = pytest.mark.parametrize("module", MODULES)


def imports(module: str) -> list[tuple[int, str]]:
    """The imported modules, with the dots in front: those inside functions too, and of packages the submodule."""
    found = []
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            submodules = [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
            known = [name for name in submodules if node.module is None or (node.level == 0 and name in MODULES)]
            found += [(node.level, name) for name in known or [node.module]]
    return found


def full_names(module: str) -> list[str]:
    """The imported modules by their full names."""
    folder = list(MODULES[module].relative_to(ROOT).parts)
    return [".".join([*folder[:-level], name]) if level else name for level, name in imports(module)]


def own_imports(module: str) -> list[str]:
    """The imported modules of this repository, by their full names."""
    found = [name for name in full_names(module) if name in MODULES]
    if module == PACKAGE:  # it imports them when a name is asked for
        found += [f"{PACKAGE}.{name}" for name in ("registration", *auto_compressor.PUBLIC_NAMES)]
    return found


def calls_and_attributes(module: str):
    return (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call | ast.Attribute))


def test_the_walk_sees_the_repository():
    model, losses, bases = (
        f"{PACKAGE}.autocompressor.{name}" for name in ("modeling_autocompressor", "losses", "bases")
    )
    assert {"train", "auto_compressor.train", "auto_compressor", losses} <= set(MODULES)
    assert {family_of(module) for module in PUSHED} == {*FAMILIES, None} and PUSHED <= set(MODULES)
    assert rank(losses) == PART and rank(bases) == rank("auto_compressor.evaluation.recall") == HOME
    assert rank("train") == PROGRAM
    assert losses in own_imports(model) and losses in own_imports("auto_compressor.autocompressor.trainer")
    assert {"auto_compressor.registration", model} <= set(own_imports(PACKAGE)) <= set(MODULES)


@modules
def test_imports_go_downward(module):
    layer = rank(module)
    for imported in own_imports(module):
        # In these layers a module may use another of its own; a cycle is found below.
        allowed = layer if layer in (TRAINING, HOME, FACE, SCRIPT, PROGRAM) or module not in PUSHED else layer - 1
        assert rank(imported) <= allowed, f"{module} imports {imported}"


@modules
def test_modules_are_imported_by_their_names_of_today(module):
    """Those of before are for others."""
    own = {name for name in full_names(module) if name.split(".")[0] == PACKAGE}
    assert own <= set(MODULES)


@pytest.mark.parametrize("module", [module for module in MODULES if family_of(module)])
def test_families_do_not_know_each_other(module):
    assert {family_of(imported) for imported in own_imports(module)} <= {family_of(module), None}


def definitions(module: str) -> dict[str, str]:
    """The functions and classes of a module, by name."""
    nodes = (node for node in TREES[module].body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {node.name: ast.dump(node) for node in nodes}


def test_copies_are_equal():
    """What two families have under one name is the same code: each is pushed to the hub without the other."""
    shared = ("cache_names", "cached_prompts", "identity", "loading", "patching", "tensors")
    copies = {}
    for module in MODULES:
        if module.split(".")[-1] in shared:
            for name, code in definitions(module).items():
                copies.setdefault(name, {})[module] = code
    copied = {name: set(found.values()) for name, found in copies.items() if len(found) > 1}
    assert {"masked_mean", "renamed", "load", "CachedPromptMixin", "continued_borders"} <= set(copied)
    assert {name for name, codes in copied.items() if len(codes) > 1} == set()


def test_no_cycles():
    done = set()

    def visit(module, above):
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for imported in own_imports(module):
                visit(imported, [*above, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("module", [module for module in MODULES if rank(module) == CONFIGURATION])
def test_configurations_do_not_import_torch(module):
    assert not [name for _, name in imports(module) if name.split(".")[0] == "torch"]


def loaded_with(module: str) -> set[str]:
    """The modules of this repository that run when `module` is imported: of imports, those outside functions."""
    nodes = [node for node in TREES[module].body if isinstance(node, ast.ImportFrom) and node.level]
    folder = MODULES[module].relative_to(ROOT).parts
    names = [(".".join(folder[: -node.level]), node) for node in nodes]
    found = {f"{package}.{name}" for package, node in names for name in [node.module, *(a.name for a in node.names)]}
    return {module}.union(*(loaded_with(name) for name in found & set(MODULES)))


def test_the_command_starts_without_torch():
    """What runs before a sub-command is chosen; tests/test_imports.py looks at the modules that are loaded."""
    heavy = {"torch", "transformers", "peft", "datasets", "accelerate", "lm_eval", "safetensors"}
    for name in loaded_with("auto_compressor.cli.main") | loaded_with(PACKAGE):
        at_top = [node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [getattr(node, "module", None) or alias.name for node in at_top for alias in node.names]
        assert not heavy & {name.split(".")[0] for name in names}, name


@pytest.mark.parametrize("module", sorted(PUSHED))
def test_what_is_pushed_to_the_hub_is_flat(module):
    """transformers copies `from .file import name` only, and the copies lie in one folder."""
    for level, name in imports(module):
        assert level <= 1 and name.split(".")[0] != PACKAGE, f"{module}: {name}"
        assert level == 0 or "." not in name, f"{module}: from {'.' * level}{name} import ..."
    nodes = (node for node in ast.walk(TREES[module]) if isinstance(node, ast.ImportFrom))
    assert all(node.module for node in nodes), f"{module}: from . import ..."


@modules
def test_no_assert(module):
    """Bad input is a ValueError; an assert goes away with `python -O`."""
    assert not [node.lineno for node in ast.walk(TREES[module]) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("module", [module for module in MODULES if rank(module) in (GENERATION, MODEL)])
def test_no_item_in_models(module):
    """It waits for the device, and breaks compilation."""
    attributes = [node for node in calls_and_attributes(module) if isinstance(node, ast.Attribute)]
    assert not [node.lineno for node in attributes if node.attr == "item"]


@modules
def test_no_trusted_remote_code(module):
    for node in calls_and_attributes(module):
        for keyword in getattr(node, "keywords", []):
            trusted = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            assert not (keyword.arg == "trust_remote_code" and trusted), f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", sorted(PUSHED))
def test_public_names_come_last(module):
    """Every file of the package that is imported by name states its public names, last."""
    last = TREES[module].body[-1]
    assert isinstance(last, ast.Assign) and last.targets[0].id == "__all__"
    assert ast.get_docstring(TREES[module])

"""The layout of the repository, read from its syntax trees: what may import what, and what no file may contain."""

import ast
from pathlib import Path

import pytest

import auto_compressor


ROOT = Path(__file__).parents[1]
PACKAGE = "auto_compressor"
SCRIPTS = ("args", "data", "substep_trainer")  # other names of modules in the package
FACE = ("__init__", "adaptive_trainer", "bases", "byte_codec", "byte_lm_codec", "carried_state", "convert")
FACE += ("activation_trainer", "continuous_trainer", "hierarchical_trainer", "objectives", "registration")
FACE += ("trainer_mixin",)

GROUND, PART, CONFIGURATION, GENERATION, MODEL, PACKAGE_FACE, TRAINING, SCRIPT, PROGRAM = range(9)


def source_files() -> list[Path]:
    """Every Python file that is no test."""
    return sorted(ROOT.glob("*.py")) + sorted((ROOT / PACKAGE).rglob("*.py")) + sorted(ROOT.glob("benchmarks/*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> int:
    """The layer of a module of this repository; a module may import only from layers below its own."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return SCRIPT if parts[0] in SCRIPTS else PROGRAM
    if len(parts) > 2 or (ROOT / PACKAGE / parts[-1]).is_dir():
        return {"cli": PROGRAM, "training": TRAINING}.get(parts[1], PACKAGE_FACE)
    if parts[1:] == ["train"]:
        return SCRIPT
    if parts[1:] in (["cache_names"], ["loading"], ["whole_files"], ["byte_rows"]):
        return GROUND  # what is outside: the installed transformers, folders and files, rows of text
    if len(parts) == 1 or parts[1] in FACE:
        return PACKAGE_FACE
    kind = parts[1].split("_")[0]
    return {"configuration": CONFIGURATION, "generation": GENERATION, "modeling": MODEL}.get(kind, PART)


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
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if node.level == 0 and name in MODULES]
            found += [(node.level, name) for name in known or [node.module or ""]]
    return found


def own_imports(module: str) -> list[str]:
    """The imported modules of this repository, by their full names."""
    path, found = MODULES[module], []
    for level, name in imports(module):
        if level:
            folder = list(path.relative_to(ROOT).parts[:-level])
            name = ".".join([*folder, name] if name else folder)
        if name in MODULES:
            found.append(name)
    if module == PACKAGE:  # it imports them when a name is asked for
        found += [f"{PACKAGE}.{name}" for name in ("registration", *auto_compressor.PUBLIC_NAMES)]
    return found


def calls_and_attributes(module: str):
    return (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call | ast.Attribute))


def test_the_walk_sees_the_repository():
    assert {"train", "auto_compressor.train", "auto_compressor", "auto_compressor.losses"} <= set(MODULES)
    assert rank("auto_compressor.losses") == PART and rank("auto_compressor.bases") == PACKAGE_FACE
    assert rank("auto_compressor.evaluation.context") == PACKAGE_FACE and rank("train") == PROGRAM
    assert "auto_compressor.losses" in own_imports("auto_compressor.modeling_autocompressor")
    assert "auto_compressor.losses" in own_imports("auto_compressor.training.substep_trainer")
    assert {"auto_compressor.registration", "auto_compressor.bases"} <= set(MODULES) >= set(own_imports(PACKAGE))
    assert "auto_compressor.softprompt_cache" in own_imports(PACKAGE)


@modules
def test_imports_go_downward(module):
    layer = rank(module)
    for imported in own_imports(module):
        # Within the face and among the scripts a module may use another; a cycle is found below.
        allowed = layer if layer in (PACKAGE_FACE, TRAINING, SCRIPT, PROGRAM) else layer - 1
        assert rank(imported) <= allowed, f"{module} imports {imported}"


def test_no_cycles():
    def visit(module, above):
        assert module not in above, " -> ".join([*above, module])
        for imported in own_imports(module):
            visit(imported, [*above, module])

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


@pytest.mark.parametrize("module", [module for module in MODULES if rank(module) <= MODEL])
def test_what_is_pushed_to_the_hub_is_flat(module):
    """transformers copies `from .file import name` only, and the copies lie in one folder."""
    for level, name in imports(module):
        assert level <= 1 and name.split(".")[0] != PACKAGE, f"{module}: {name}"
        assert level == 0 or (name and "." not in name), f"{module}: from {'.' * level}{name} import ..."


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


@pytest.mark.parametrize("module", [module for module in MODULES if rank(module) <= MODEL])
def test_public_names_come_last(module):
    """Every file of the package that is imported by name states its public names, last."""
    last = TREES[module].body[-1]
    assert isinstance(last, ast.Assign) and last.targets[0].id == "__all__"
    assert ast.get_docstring(TREES[module])

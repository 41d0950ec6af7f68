"""Imports go down: every folder imports only from folders of lower layers, and no two files import each other in a circle."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the lowest layer to the highest. Folders of one layer do not import each other.
LAYERS = (
    {"messages", "progress_bar"},
    {"records"},
    {"config"},
    {"cli", "losses", "models", "visual"},
    {"data", "methods"},
    {"transforms", "evaluation"},
    {"training"},
    {"sharing"},
    {"demo", "export"},
    {"recipes", "hub"},
    {"api"},
)


def layer_of(folder: str) -> int:
    return next(number for number, folders in enumerate(LAYERS) if folder in folders)


def module_of(path: Path) -> str:
    """mscl_hf.data.cache for mscl_hf/data/cache.py; mscl_hf.data for mscl_hf/data/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """All modules of mscl_hf, recipes and hub by name."""
    return {module_of(path): path for folder in ("mscl_hf", "recipes", "hub") for path in sorted((ROOT / folder).rglob("*.py"))}


def imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the project that a file imports, wherever in the file."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{name}.{alias.name}" if f"{name}.{alias.name}" in modules else name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in modules}


def folder_of(module: str) -> str:
    parts = module.split(".")
    return (parts[1] if len(parts) > 1 else "__init__") if parts[0] == "mscl_hf" else parts[0]


def wrong_imports(modules: dict[str, Path]) -> list[str]:
    """Imports of a folder of the same or of a higher layer, as "FILE imports MODULE"."""
    wrong = []
    for module, path in modules.items():
        own = folder_of(module)
        for imported in imports(path, modules):
            other = folder_of(imported)
            if other == own or "__init__" in (own, other):
                continue
            if layer_of(other) >= layer_of(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    return sorted(wrong)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports; [] where there is none."""
    state: dict[str, int] = {}

    def visit(module: str, trail: list[str]) -> list[str]:
        if state.get(module) == 1:
            return trail[trail.index(module) :]
        if state.get(module) == 2:
            return []
        state[module] = 1
        found = next((found for other in sorted(graph[module]) if (found := visit(other, [*trail, other]))), [])
        state[module] = 2
        return found

    return next((found for module in sorted(graph) if (found := visit(module, [module]))), [])


def test_imports_go_down():
    """No file imports from its own layer's other folders or from a higher layer."""
    assert wrong_imports(sources()) == []


def test_no_circles():
    """No file imports, through whatever others, a file that imports it."""
    modules = sources()
    graph = {module: imports(path, modules) - {module} for module, path in modules.items()}
    assert circle({module: {name for name in names if modules[name].name != "__init__.py"} for module, names in graph.items()}) == []


def test_the_checks_can_fail(tmp_path, monkeypatch):
    """A loss that imports the training loop is reported, and so are two files that import each other."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name, text in {"losses/bad": "from ..training.loop import fit\n", "training/loop": "from mscl_hf.losses import bad\n"}.items():
        file = tmp_path / "mscl_hf" / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    modules = sources()
    assert wrong_imports(modules) == ["mscl_hf/losses/bad.py imports mscl_hf.training.loop"]
    assert circle({module: imports(path, modules) for module, path in modules.items()}) != []


def test_losses_import_torch_and_their_options_only():
    """A loss imports torch and the standard library; only multi_scale.py imports its options, which are free of torch."""
    allowed = {"torch", "typing", "collections", "dataclasses", "itertools", "functools", "math"}
    for path in (ROOT / "mscl_hf" / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] in allowed, path
            elif isinstance(node, ast.ImportFrom) and node.level > 1:
                assert (path.name, node.level, node.module) == ("multi_scale.py", 2, "config.contrast")


def test_models_can_travel_as_remote_code():
    """The files that travel with a checkpoint import only the standard library, a few packages and each other."""
    allowed = {"huggingface_hub", "safetensors", "timm", "torch", "transformers"}
    paths = sorted((ROOT / "mscl_hf" / "models").glob("*_mscl.py"))
    assert len(paths) >= 6
    allowed |= set(sys.stdlib_module_names)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                flat = node.level == 1 and node.module.endswith("_mscl")
                assert flat or node.module.split(".")[0] in allowed, (path, node.module)

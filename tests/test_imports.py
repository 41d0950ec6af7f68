"""The shape of the house: imports only go down."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "mscl_hf"
FLOORS = (
    {"losses", "metrics", "palette", "options", "log", "inference", "upload", "blocks_mscl", "checks_mscl", "configuration_mscl",
     "decoders_mscl",
     "heads_mscl", "towers_mscl", "modeling_mscl", "half_width", "backbones", "stopping", "run_folder", "processes", "manifest", "sharding",
     "train_options", "launcher", "remedies", "text_files"},
    {"data", "methods", "figures"},
    {"checkpoint", "prepare", "report", "train", "evaluate", "probe", "health", "publish", "provenance", "card",
     "export", "finishing", "similarity", "demo"},
)


def floor_of(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module in names)


def imports(path: Path) -> set[str]:
    """Top-level modules of the package that a file imports, wherever in the file."""
    parents = path.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else None
            if base is None:
                full = (node.module or "").split(".")
                full = full[1:] if full[0] == "mscl_hf" else None
            else:
                full = [*base, *(node.module or "").split(".")]
            if full is not None:
                full = [part for part in full if part]
                found |= {full[0]} if full else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mscl_hf.")}
    return found


def climbing_imports() -> list[str]:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for other in imports(path) - {own, "__init__"}:
            climbs = floor_of(other) > floor_of(own)
            siblings = {own, other} == {"data", "methods"} or (own == "losses" and other != "losses")
            if climbs or siblings:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    return wrong


def test_imports_only_go_down():
    """No file imports from a floor above its own, and data and methods never import each other."""
    assert climbing_imports() == []


def test_the_walk_sees_a_climbing_import(tmp_path, monkeypatch):
    """The check itself can fail: a loss that imports the training loop is reported."""
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "bad.py").write_text("from ..train import fit\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert climbing_imports() == ["losses/bad.py imports train"]


def test_losses_import_torch_and_nothing_else():
    """A loss can be copied out of this project: torch and the standard library are all it needs."""
    allowed = {"torch", "typing", "collections", "dataclasses", "itertools", "functools", "math"}
    for path in (PACKAGE / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] in allowed, path


def test_models_can_travel_as_remote_code():
    """Configuration, decoders, towers and modeling import only torch, timm, transformers, safetensors and each other."""
    for name in ("checks_mscl", "configuration_mscl", "decoders_mscl", "heads_mscl", "towers_mscl", "modeling_mscl"):
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                flat = node.level == 1 and node.module.endswith("_mscl")
                allowed = {"torch", "timm", "transformers", "safetensors", "dataclasses", "pathlib"}
                assert flat or node.module.split(".")[0] in allowed, (name, node.module)

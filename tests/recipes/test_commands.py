"""The console commands, as an installation of the package leaves them."""

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "mscl_hf", "recipes", "hub")
PIP = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
LISTS = {"mscl-finetune": ("--list-losses", "loss"), "mscl-pretrain": ("--list-methods", "method")}
# All in one process, which also shows that none of them imports what takes seconds.
HELP = """
import contextlib, inspect, sys
from importlib import metadata
for script in metadata.distribution("mscl_hf").entry_points.select(group="console_scripts"):
    main = script.load()
    print(script.name, inspect.getfile(inspect.unwrap(main)))
    sys.argv = [script.name, "--help"]
    with contextlib.suppress(SystemExit):
        main()
print("slow imports:", *sorted({"torch", "torchvision", "timm", "datasets", "evaluate", "gradio", "matplotlib"} & sys.modules.keys()))
"""


def install(folder: Path, editable: bool) -> tuple[Path, Path]:
    """Install a copy of the sources into a new environment; return its Python and its site-packages.

    Libraries are those of the environment that runs the tests. A path file adds them, so that the path files in there, one of which may be
    of another editable install of this package, have no effect.
    """
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    start([python, *PIP, *["-e"] * editable, source], folder)
    return python, site


def start(command: list, folder: Path) -> str:
    """Return what the command prints; it starts in this folder, without PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="scripts lie elsewhere")
@pytest.mark.parametrize(("editable", "name"), [(True, "mscl-finetune"), (False, "mscl-pretrain")], ids=["editable", "wheel"])
def test_every_console_command_starts_from_any_folder(tmp_path, editable, name):
    """Each entry point of the package prints its help, by the modules of this very installation; one of the scripts prints its list."""
    if not list(metadata.distributions(name="pip")):  # a search for the module would make setuptools leave distutils to Python
        pytest.skip("needs pip")
    python, site = install(tmp_path, editable)
    (package,) = metadata.distributions(name="mscl_hf", path=[str(site)])
    scripts = package.entry_points.select(group="console_scripts").names
    assert LISTS.keys() < scripts
    lines = start([python, "-c", HELP], tmp_path).splitlines()
    assert lines[-1] == "slow imports:"
    usages = [line.split()[1] for line in lines if line.startswith("usage: ")]
    assert sorted(usages) == sorted(scripts) and "usage: mscl-data check [options]" in lines
    home = (tmp_path / "source" if editable else site).resolve()
    files = [Path(line.split()[1]).resolve() for line in lines if line.startswith("mscl-")]
    assert len(files) == len(scripts) and all(file.is_relative_to(home) for file in files)
    assert all(os.access(python.with_name(name), os.X_OK) for name in scripts)
    option, column = LISTS[name]
    assert start([python.with_name(name), option], tmp_path).split()[:2] == ["name", column]


def outcome_of(program: str) -> str:
    """The output of a Python program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_garbage_is_still_collected_in_commands():
    """Full collections are rare, and none is made at exit; young objects in reference cycles are collected, and output is not lost."""
    assert outcome_of("""
        import atexit, gc, weakref
        atexit.register(lambda: print(gc.get_freeze_count() > 0))  # handlers that are registered later run earlier
        from mscl_hf.cli import command

        class Node:
            def __init__(self):
                self.me = self

        @command
        def main():
            references = [weakref.ref(Node()) for _ in range(20_000)]
            print(gc.get_threshold()[2] >= 1000, sum(reference() is not None for reference in references) < 5_000)

        main()
    """) == "True True\nTrue\n"  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_commands_keep_freed_memory():
    """The last of several equal computations reuses the memory of the others: it causes few page faults, not one per 4 KB."""
    first, *_, last = map(int, outcome_of("""
        import resource, torch
        from mscl_hf.training.setup import make_accelerator

        make_accelerator("no")
        for _ in range(6):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(2**24).add(1).exp_()  # two tensors of 64 MB
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """).split())  # fmt: skip
    assert first > 10_000 and last < 1000

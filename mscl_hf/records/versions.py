"""What ran: the commit of the sources, and the versions of the packages."""

import functools
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import mscl_hf


@functools.cache
def commit() -> str | None:
    """The commit of the source tree that runs, with "-dirty" when it was changed since; None when it is no git checkout of its own.

    A process that runs for hours has the sources of its start: it asks then (in `run.json`), and is told the same ever after.
    MSCL_HF_COMMIT says it where the tree was copied without its history, into a container or onto a node.
    """
    if os.environ.get("MSCL_HF_COMMIT"):
        return os.environ["MSCL_HF_COMMIT"]
    root = Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():  # an installed copy may lie inside another project's checkout
        return None
    words = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    found = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None

PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "numpy")


def package_versions() -> dict[str, str]:
    """Of what computed: this package with its commit, Python, the libraries."""
    own = f"{mscl_hf.__version__} ({commit()})" if commit() else mscl_hf.__version__
    return {"mscl_hf": own, "Python": platform.python_version()} | {package: version(package) for package in PACKAGES}

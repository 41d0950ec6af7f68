"""Versions of the code that runs: the commit of the sources, and the packages."""

import functools
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import mscl_hf

PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "numpy")


@functools.cache
def commit() -> str | None:
    """Return the commit of the source tree, with "-dirty" if it was changed since; None where it is not a git checkout.

    Cached: a long run keeps the sources of its start. MSCL_HF_COMMIT overrides it, for trees copied without their history.
    """
    if os.environ.get("MSCL_HF_COMMIT"):
        return os.environ["MSCL_HF_COMMIT"]
    root = Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():  # an installed copy may lie inside another project's checkout
        return None
    words = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Return the versions of mscl_hf (with its commit), Python and the libraries."""
    own = f"{mscl_hf.__version__} ({commit()})" if commit() else mscl_hf.__version__
    return {"mscl_hf": own, "Python": platform.python_version()} | {package: version(package) for package in PACKAGES}

"""The methods by name. To add one: a file beside this one, and a line in METHODS."""

import difflib

from .base import Method
from .mscl import MSCL
from .none import NoPreTraining
from .segmentation import SegmentationTraining

METHODS: dict[str, type[Method]] = {
    "none": NoPreTraining,
    "mscl": MSCL,
}


def method_class(name: str) -> type[Method]:
    """The class behind a name; ValueError with the near names for an unknown one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.4)
        raise ValueError(f"unknown method {name!r}; near: {', '.join(near) or 'none'}; all: {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "MSCL", "Method", "NoPreTraining", "SegmentationTraining", "method_class"]

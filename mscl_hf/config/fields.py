"""Fields of a configuration: help, choices and ranges in one place, checked wherever a configuration is made."""

import math
import operator
import re
import types
import typing
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..messages import flag, layout_advice, near_names

LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def option(default: Any, help: str, **limits: float) -> Any:
    """A field of a configuration: `help` for the command line, and the range of its number or of each number in its list.

    default: a value, or a function that makes it; `...` for an option that has to be given. limits: by the names in LIMITS.
    """
    metadata = {"help": help, "range": limits}
    if default is ...:
        return field(metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Section:
    """A part of a configuration. Its choices (`Literal` types) and ranges are checked when it is made; ValueError names the flag."""

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for f in fields(self):
            value, choices, limits = getattr(self, f.name), choices_of(hints[f.name]), f.metadata.get("range", {})
            if value is None and f.default is None:
                continue
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if choices and item not in choices:
                    advice = (f.name == "dataset" and layout_advice(str(item))) or near_names(str(item), map(str, choices))
                    raise ValueError(f"{flag(f.name)} is {item!r}; expected one of {', '.join(map(str, choices))}. {advice}".rstrip())
                if limits and not (math.isfinite(item) and all(LIMITS[name](item, limit) for name, limit in limits.items())):
                    expected = " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())
                    raise ValueError(f"{flag(f.name)} is {item}; expected {expected}.")

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        default = type(self)()
        return {name: value for name, value in vars(self).items() if value != getattr(default, name)}


def choices_of(hint: Any) -> tuple:
    """The values of a `Literal` type, also within `| None` and `list[...]`; () for any other type."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (list, typing.Union, types.UnionType):
        return next((found for part in typing.get_args(hint) if (found := choices_of(part))), ())
    return ()


def default_words(config: Any) -> dict[str, str]:
    """Return {option: the help's word for its default} of the options of a configuration whose default is None: "all", "none", ..."""
    options = [f for section in fields(config) for f in fields(getattr(config, section.name)) if f.default is None]
    words = {f.name: re.search(r"\(default: ([^;)]+)", f.metadata["help"]) for f in options}
    return {name: word[1] for name, word in words.items() if word}

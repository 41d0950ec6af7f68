"""Fields of a configuration: help, choices and ranges in one place, checked wherever a configuration is made."""

import math
import types
import typing
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..messages import flag


def option(default: Any, help: str, *, at_least: float | None = None, above: float | None = None, at_most: float | None = None,
           below: float | None = None) -> Any:  # fmt: skip
    """A field of a configuration: `help` for the command line, and the range of its number or of each number in its list.

    default: a value, or a function that makes it; `...` for an option that has to be given.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"help": help, "range": {name: limit for name, limit in limits.items() if limit is not None}}
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
        check_fields(self)


def check_fields(section: Any) -> None:
    """Raise ValueError for a value of a dataclass that is none of its choices, or out of its range."""
    hints = typing.get_type_hints(type(section))
    for f in fields(section):
        value = getattr(section, f.name)
        if value is None and f.default is None:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        choices = choices_of(hints[f.name])
        for item in values:
            if choices and item not in choices:
                raise ValueError(f"{flag(f.name)} is {item!r}; expected one of {', '.join(map(str, choices))}.")
            if not in_range(item, f.metadata.get("range", {})):
                raise ValueError(f"{flag(f.name)} is {item}; expected {in_words(f.metadata['range'])}.")


def choices_of(hint: Any) -> tuple:
    """The values of a `Literal` type, also within `| None` and `list[...]`; () for any other type."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (list, typing.Union, types.UnionType):
        return next((found for part in typing.get_args(hint) if (found := choices_of(part))), ())
    return ()


def in_range(value: Any, limits: dict[str, float]) -> bool:
    """Whether a number keeps all limits; NaN keeps none, infinity is in no range."""
    if not limits:
        return True
    return (
        math.isfinite(value)
        and value >= limits.get("at_least", -math.inf)
        and value > limits.get("above", -math.inf)
        and value <= limits.get("at_most", math.inf)
        and value < limits.get("below", math.inf)
    )


def in_words(limits: dict[str, float]) -> str:
    """The limits as words: "at least 0 and below 1"."""
    return " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())


def changed(section: Any) -> dict[str, Any]:
    """The options of a section that differ from their defaults."""
    default = type(section)()
    return {name: value for name, value in vars(section).items() if value != getattr(default, name)}

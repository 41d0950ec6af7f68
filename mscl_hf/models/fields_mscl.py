"""Fields of the configuration: their bounds, and errors of one sentence.

huggingface_hub's `strict` checks the type of a field whenever it is assigned. The functions here return fields with a bound on top of that,
because a config.json may come from someone else. Self-contained (huggingface_hub), so that a checkpoint can carry this file as remote code.
"""

import re
import reprlib
import unicodedata
from collections.abc import Callable
from typing import Any

from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

MOST_CLASSES, MOST_CHANNELS, MOST_PIXELS = 10_000, 4096, 16_384
INT32 = 2**31
DTYPES = ("float32", "float16", "bfloat16", "float64")


def shown(value: Any) -> str:
    """Return the representation of an untrusted value for a message, cut to 200 characters."""
    text = reprlib.repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def is_plain(text: Any) -> bool:
    """Whether a value is text without control characters, which begin a terminal's escape codes, and without unpaired surrogates."""
    return type(text) is str and not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def strict_config(cls: type) -> type:
    """Apply `strict` to a configuration class, and raise its errors as ValueError in one sentence.

    The errors of `strict` have several lines and the whole value, which can be megabytes of an untrusted file.
    """
    cls = strict(cls)
    set_field, validate = cls.__setattr__, cls.validate

    def set_field_or_explain(self, name: str, value: Any) -> None:
        try:
            set_field(self, name, value)
        except (StrictDataclassFieldValidationError, RecursionError):
            raise ValueError(
                f"{name.lstrip('_')} is {shown(value)}; expected {_expected(cls.__dataclass_fields__[name])}. "
                "Correct it, or give a config.json as it was saved."
            ) from None

    def validate_or_explain(self) -> None:
        try:
            validate(self)
        except StrictDataclassClassValidationError as error:
            raise ValueError(str(error.__cause__)) from None

    validate_or_explain.__is_defined_by_strict_decorator__ = True  # a subclass may apply `strict` again
    cls.__setattr__, cls.validate = set_field_or_explain, validate_or_explain
    return cls


def _expected(field) -> str:
    """Describe a field by its type, as for a JSON file without tuples, and its bound."""
    type_name = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    type_name = re.sub(r" \| tuple\[.*?, \.\.\.\]", "", type_name.replace("typing.", ""))
    return f"{'value' if field.type is Any else type_name} {field.metadata.get('bound', '')}".rstrip()


def _field(default: Any, is_valid: Callable[[Any], bool], bound: str) -> Any:
    def validator(value: Any) -> None:
        if value is not None and not is_valid(value):
            raise ValueError(bound)

    start = {"default_factory": default} if callable(default) else {"default": default}
    return validated_field(validator, metadata={"bound": bound}, **start)


def number(default: Any, least: float, most: float, length: int | None = None) -> Any:
    """Return a field for a number in [least, most], or for a list of at most `length` such numbers."""

    def is_valid(value: Any) -> bool:
        values = (value,) if length is None else value
        return len(values) <= (length or 1) and all(least <= item <= most for item in values)  # False for NaN

    return _field(default, is_valid, f"in [{least:,}, {most:,}]" + ("" if length is None else f", at most {length:,} of them"))


def items(length: int) -> Any:
    """Return a field for a list of at most `length` values."""
    return _field(None, lambda value: len(value) <= length, f"of at most {length} values")


def text(default: Any = None) -> Any:
    """Return a field for plain text of at most 256 characters, or for a list of at most 1024 such texts."""

    def is_valid(value: Any) -> bool:
        values = value if isinstance(value, (list, tuple)) else (value,)
        return len(values) <= 1024 and all(is_plain(item) and len(item) <= 256 for item in values)

    return _field(default, is_valid, "without control characters, at most 256 characters each")


def options(most: int, default: Any = None) -> Any:
    """Return a field for keyword arguments: text, numbers up to `most`, and lists and dictionaries of these, 4 deep."""

    def is_valid(value: Any, depth: int = 4) -> bool:
        if isinstance(value, (dict, list, tuple)):
            if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
                return False
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            return depth > 0 and len(value) <= 256 and all(is_valid(part, depth - 1) for part in parts)
        if isinstance(value, str):
            return len(value) <= 256
        return value is None or type(value) in (int, float, bool) and -most <= value <= most

    return _field(default, is_valid, f"of text up to 256 characters, numbers up to {most:,}, and lists and dictionaries of these, 4 deep")


def method_options() -> Any:
    """Return a field for the options of a pre-training method, whose name is text."""
    field = options(INT32)
    field.metadata["validator"].append(_check_method)
    return field


def _check_method(value: dict | None) -> None:
    if value and type(value.get("method", "")) is not str:
        raise ValueError("the method is not text")


def class_names() -> Any:
    """Return a field for names of classes by id, or ids by name."""

    def is_valid(value: dict) -> bool:
        return len(value) <= MOST_CLASSES and all(type(part) is not str or is_plain(part) for part in (*value, *value.values()))

    return _field(None, is_valid, f"of at most {MOST_CLASSES} classes without control characters")


def label_map() -> Any:
    """Return a field for class ids in [0, 255] by stored id."""

    def is_valid(value: dict) -> bool:
        stored_ids = all(str(stored).isdecimal() and len(str(stored)) <= 5 for stored in value)
        return len(value) <= 65_536 and stored_ids and all(0 <= class_id <= 255 for class_id in value.values())

    return _field(None, is_valid, "of class ids in [0, 255] by stored id in [0, 65535]")


def class_colors() -> Any:
    """Return a field for class ids in [0, 255] by color."""

    def is_valid(value: dict) -> bool:
        colors = (re.fullmatch(r"(\d{1,3}),(\d{1,3}),(\d{1,3})", str(color), re.ASCII) for color in value)
        are_colors = all(color is not None and max(map(int, color.groups())) <= 255 for color in colors)
        return len(value) <= 65_536 and are_colors and all(0 <= class_id <= 255 for class_id in value.values())

    return _field(None, is_valid, 'of class ids in [0, 255] by color, such as "64,0,128"')


def black_and_white() -> Any:
    """Return a field for two stored values, the lower one first."""
    return _field(None, lambda value: len(value) == 2 and -INT32 <= value[0] < value[1] < INT32, "of two values, the lower one first")


def dtype() -> Any:
    """Return a field for a floating-point type, or its name."""
    return _field(
        None, lambda value: (value if isinstance(value, str) else str(value).removeprefix("torch.")) in DTYPES, f"of {', '.join(DTYPES)}"
    )

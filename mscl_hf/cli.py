"""Command lines: dataclasses parsed by transformers' HfArgumentParser, from flags and a YAML file; flags win."""

import argparse
import difflib
import functools
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .messages import remedy_for
from .models.checks_mscl import shown
from .records.files import read_text

# What PyYAML lets through of text that is none, of dates and tagged values that cannot be, and of brackets a thousand deep.
NO_YAML = (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError)

MAPPINGS = ("label_map",)  # options whose text is key:value,...; a file may hold them as a mapping


class _YamlLoader(yaml.SafeLoader):
    """YAML without its numbers to base 60, of which `255:1` would be 15301: such a value is text."""

    def construct_yaml_int(self, node: yaml.Node) -> int | str:
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_yaml_int)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(f"{message}; all options: --help")


def parse(kinds: Sequence[type], description: str, argv: Sequence[str] | None = None) -> tuple:
    """One instance of each dataclass. Raises ValueError for unknown or ill-typed options, with the near names."""
    parser = _Parser(list(kinds), description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file, one 'option: value' a line; flags win over it")
    argv = list(sys.argv[1:] if argv is None else argv)
    known = {action.dest: action for action in reversed(parser._actions)}  # --x before --no-x
    path = _expanded(_config_path(argv))
    if path is not None:
        parser.set_defaults(**_read_yaml(path, known))
    parsed = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    *instances, extra, remaining = parsed if len(parsed) == len(kinds) + 2 else (*parsed, None)
    if remaining:
        raise ValueError(_unknown(remaining[0], [flag for action in parser._actions for flag in action.option_strings]))
    for name, value in flat(*instances).items():
        if any(isinstance(number, float) and not math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be finite")
    return tuple(map(_with_home, instances))


def _with_home(instance):
    """The options with ~ as the home folder, which shells expand neither in a YAML file nor behind '='."""
    values = {option.name: getattr(instance, option.name) for option in fields(instance)}
    changes = {name: _expanded(value) for name, value in values.items() if value != _expanded(value)}
    return replace(instance, **changes) if changes else instance


def _expanded(value):
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def _config_path(argv: list[str]) -> str | None:
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--config="):
            return word.split("=", 1)[1]
    return None


def _read_yaml(path: str, known: dict) -> dict:
    if not Path(path).is_file():
        raise ValueError(f"no configuration file {path}; give the path of a YAML file to --config")
    try:
        content = _YamlLoader(read_text(path)).get_single_data() or {}
    except NO_YAML as error:
        raise ValueError(f"{path} is no valid YAML ({' '.join(str(error).split())}); write 'option: value' lines") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'option: value' lines, got a {type(content).__name__}")
    options = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{path}: " + _unknown(key, list(known)))
        options[key] = _typed(path, key, value, known[key])
    return options


def _typed(path: str, key: str, value, action):
    """The value as the flag would have read it; null stands for an option that has no value by default."""
    many = action.nargs in ("+", "*")
    kind = "true or false" if action.type is string_to_bool else getattr(action.type, "__name__", "text")
    if value is None and action.default is None:
        return None
    if key in MAPPINGS and isinstance(value, dict):
        value = ",".join(f"{stored}:{new}" for stored, new in value.items())
    try:
        if isinstance(value, list) and not many:
            raise ValueError
        values = [_scalar(action.type, v) for v in (value if isinstance(value, list) else [value])]
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        wanted = f"{'a list of ' * many}{kind}{_yaml_remedy(value, action)}"
        raise ValueError(f"{path}: {key} is {shown(value)}, which cannot be read as {wanted}") from error
    return values if many else values[0]


def _yaml_remedy(value, action) -> str:
    """How to write text that YAML reads as another value; '' where that is not the fault."""
    if action.nargs in ("+", "*") and isinstance(value, dict):
        names = [str(value[name]) for name in sorted(value, key=lambda name: (not isinstance(name, int), str(name).zfill(9)))]
        return f"; write a list: [{', '.join(names)}]"[:200]
    values = value if isinstance(value, list) else [value]
    if action.type is str and any(item is None or isinstance(item, bool) for item in values):
        return "; quote yes, no, on, off, true, false and null, which are not text in YAML: 'no'"
    return ""


def _scalar(kind: Callable, value):
    if value is None or isinstance(value, (dict, list, bytes)) or isinstance(value, bool) and kind is not string_to_bool:
        raise ValueError
    return kind(str(value))


def _unknown(word: str, known: list[str]) -> str:
    if remedy := remedy_for(word, known):
        return f"unknown option {word.split('=')[0]}; {remedy}; all options: --help"
    flags = [flag.replace("_", "-") for flag in known]
    near = difflib.get_close_matches(word.split("=")[0].replace("_", "-"), flags, n=3)
    shown = word if word and word.isprintable() else repr(word)
    return f"unknown option {shown}; near: {', '.join(dict.fromkeys(near)) or 'none'}; all options: --help"


def flat(*instances) -> dict:
    """All options of a run in one dict, for its record."""
    return {key: value for instance in instances for key, value in asdict(instance).items()}


def printable(*instances) -> dict:
    """The same for trackers, which take numbers, truth values and text."""
    return {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in flat(*instances).items()}


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns side by side; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def command(main: Callable[[], None]) -> Callable[[], None]:
    """A recipe's main, whose errors of input end in one sentence and status 1; anything else keeps its traceback."""

    @functools.wraps(main)
    def inner() -> None:
        try:
            main()
        except (ValueError, OSError) as error:
            if os.environ.get("MSCL_HF_TRACEBACK"):
                raise
            sys.exit(f"error: {error}")

    return inner

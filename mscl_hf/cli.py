"""Parse command lines: a configuration of named sections from flags and a YAML file, where flags override the file. Imports no torch."""

import argparse
import atexit
import copy
import functools
import gc
import inspect
import math
import os
import reprlib
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool
from transformers.utils import logging

from .config import EvaluateConfig, FinetuneConfig, PredictConfig, PretrainConfig
from .messages import flag, unknown_option
from .records.files import read_text, write_text

# Raised by PyYAML for invalid syntax, impossible dates and tagged values, and deep nesting.
YAML_ERRORS = (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError)
MAPPINGS = ("label_map",)  # options of the form key:value,..., which a file may also give as a mapping
METAVARS = {
    "start_from": "MODEL", "class_colors": "FILE", "annotations": "FILE", "ignored_colors": "R,G,B", "push_to_hub": "ORG/NAME",
    "report_to": "TRACKER", "by_evaluate": "METRIC", "config": "FILE",
}  # fmt: skip
LONGEST_CHOICES = 60  # characters of {a,b,...} beside an option in --help; longer lists are left to the help text
REQUIRED = "the following arguments are required: "  # of argparse
TYPE_NAMES = {int: "a whole number", float: "a number", string_to_bool: "true or false", str: "text"}


class _YamlLoader(yaml.SafeLoader):
    """A YAML loader that reads 255:1 as text, not as the sexagesimal number 15301."""

    def construct_yaml_int(self, node: yaml.Node) -> int | str:
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_yaml_int)


class _Help(argparse.HelpFormatter):
    """Show options with hyphens, and their defaults where the help text has none."""

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable:
        return lambda count: (default_metavar,) * count

    def _format_action_invocation(self, action: argparse.Action) -> str:
        option = action.option_strings[-1]
        if action.type is string_to_bool:
            return option if not action.default else f"{option}, --no-{option[2:]}"
        choices = f"{{{','.join(map(str, action.choices or ()))}}}"
        metavar = METAVARS.get(action.dest) or {int: "N", float: "X"}.get(action.type, action.dest.split("_")[-1].upper())
        value = choices if action.choices and len(choices) <= LONGEST_CHOICES else metavar
        return option if action.nargs == 0 else f"{option} {self._format_args(action, value)}"

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.required:
            return f"{action.help} (required)"
        if action.default in (None, argparse.SUPPRESS, []) or "(default:" in action.help or action.type is string_to_bool:
            return action.help
        return f"{action.help} (default: {' '.join(map(str, action.default)) if isinstance(action.default, list) else action.default})"


class _Parser(HfArgumentParser):
    """HfArgumentParser with a group for each section, the common options first in --help, and errors as ValueError."""

    def __init__(self, sections: Sequence[tuple[str, type]], common: Sequence[str], description: str, subcommand: str = ""):
        super().__init__(description=description, allow_abbrev=False, formatter_class=_Help)
        self.prog = f"{self.prog} {subcommand}".rstrip()
        self.common, self.dataclass_types = common, [section_cls for _, section_cls in sections]
        for title, section_cls in sections:
            group, hints = self.add_argument_group(title, inspect.getdoc(section_cls)), typing.get_type_hints(section_cls)
            for field in map(copy.copy, filter(lambda field: field.init, fields(section_cls))):
                field.type = hints[field.name]
                if "range" in field.metadata:  # transformers passes the metadata to argparse
                    field.metadata = {"help": field.metadata["help"].replace("%", "%%")}
                if field.default_factory not in (MISSING, list) and not isinstance(default := field.default_factory(), list):
                    field.default, field.default_factory = default, MISSING  # transformers supports factories of lists only
                self._parse_dataclass_field(group, field)
        self.add_argument("--config", help="YAML file with one 'option: value' per line, such as a run's config.yaml; flags override it")

    def error(self, message: str) -> None:
        if message.startswith(REQUIRED):
            options = [names.split("/")[-1] for names in message.removeprefix(REQUIRED).split(", ")]  # of --x_y/--x-y
            raise ValueError(f"{' and '.join(options)} {'are' if options[1:] else 'is'} missing. See --help.")
        raise ValueError(f"{message.removeprefix('argument ')}. See --help.")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return _with_home(super()._get_value(action, arg_string))
        except argparse.ArgumentError:
            raise ValueError(f"{flag(action.dest)} is {arg_string!r}; expected {_type_name(action)}.") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Do nothing: the section checks its choices."""

    def format_help(self) -> str:
        """Return the common options, then the others by group. --no-x is hidden: --x false does the same."""
        formatter = self._get_formatter()
        formatter.add_usage("%(prog)s [options]", [], [])
        formatter.add_text(self.description)
        shown = [action for action in self._actions if not any(option.startswith("--no-") for option in action.option_strings)]
        common = [action for name in self.common for action in shown if action.dest == name]
        groups = [("common options", None, common)] if common else []
        for group in self._action_groups[1:]:
            groups.append((group.title, group.description, [a for a in group._group_actions if a in shown and a not in common]))
        for title, description, actions in groups:
            formatter.start_section(title)
            formatter.add_text(description)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def parse(config_cls: type, description: str, argv: Sequence[str] | None = None, subcommand: str = "") -> Any:
    """Return the configuration that the flags and the file of --config give. Raises ValueError for the first wrong option.

    config_cls: a dataclass whose fields are dataclasses, the sections. subcommand: shown by --help after the name of the command.
    """
    hints = typing.get_type_hints(config_cls)
    sections = [(f.name, hints[f.name]) for f in fields(config_cls)]
    return config_cls(*_parse(_Parser(sections, getattr(config_cls, "COMMON", ()), description, subcommand), argv))


def parse_sections(section_classes: Sequence[type], description: str, argv: Sequence[str] | None = None) -> tuple:
    """Return one instance of each dataclass, as `parse` does."""
    return _parse(_Parser([("options of the command", section_cls) for section_cls in section_classes], (), description), argv)


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Return the words that give these options on a command line. Names may have hyphens or underscores."""
    words = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            value = ",".join(f"{key}:{item}" for key, item in value.items())
        values = [str(value).lower()] if isinstance(value, bool) else value if isinstance(value, (list, tuple)) else [value]
        words += [flag(name), *map(str, values)]
    return words


def _parse(parser: _Parser, argv: Sequence[str] | None) -> tuple:
    argv = list(sys.argv[1:] if argv is None else argv)
    known = {action.dest: action for action in reversed(parser._actions)}  # --x before --no-x
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", nargs="?")  # without a file, an error of the other parser
    path = _with_home(first.parse_known_args(argv)[0].config)
    if path is not None:
        parser.set_defaults(**_read_yaml(path, known))
    parsed = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    *instances, _, remaining = parsed  # _ holds --config
    if remaining:
        options = [option for action in parser._actions for option in action.option_strings]
        raise ValueError(unknown_option(remaining[0], options, _options_of_commands()))
    for name, value in flat(*instances).items():
        if any(isinstance(number, float) and not math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{flag(name)} is {value}; expected a finite number.")
    return tuple(instances)


def _options_of_commands() -> dict[str, list[str]]:
    """Return {command: names of its options} of the recipes."""
    configs = {
        "mscl-pretrain": PretrainConfig, "mscl-finetune": FinetuneConfig, "mscl-evaluate": EvaluateConfig, "mscl-predict": PredictConfig,
    }  # fmt: skip
    return {command: list(flat(config_cls())) for command, config_cls in configs.items()}


def _with_home(value: Any) -> Any:
    """Expand ~ at the start of text: shells do not expand it in a YAML file or after '='."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def _read_yaml(path: str, known: dict[str, argparse.Action]) -> dict:
    if not Path(path).is_file():
        raise ValueError(f"--config is {path}; expected the path of a YAML file.")
    try:
        content = _YamlLoader(read_text(path)).get_single_data() or {}
    except YAML_ERRORS as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())}); expected 'option: value' lines.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected 'option: value' lines.")
    options = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{path}: " + unknown_option(key, list(known), _options_of_commands()))
        options[key] = _typed(path, key, value, known[key])
    return options


def _typed(path: str, key: str, value: Any, action: argparse.Action) -> Any:
    """Return a value of the file as its flag would be read. null is allowed where the default is None."""
    many = action.nargs in ("+", "*")
    if value is None and action.default is None:
        return None
    if key in MAPPINGS and isinstance(value, dict):
        value = ",".join(f"{stored}:{new}" for stored, new in value.items())
    try:
        if isinstance(value, list) and not many:
            raise ValueError
        values = [_scalar(action.type, item) for item in (value if isinstance(value, list) else [value])]
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        expected = f"a list, each {_type_name(action)}" if many else _type_name(action)
        shown = reprlib.repr(value)[:200]
        raise ValueError(f"{path}: {key} is {shown}; expected {expected}{_yaml_advice(value, action)}.") from error
    return values if many else values[0]


def _type_name(action: argparse.Action) -> str:
    return TYPE_NAMES.get(action.type, f"one of {', '.join(map(str, action.choices))}" if action.choices else "text")


def _yaml_advice(value: Any, action: argparse.Action) -> str:
    """Return how to write text that YAML reads as another type; "" where that is not the problem."""
    if action.nargs in ("+", "*") and isinstance(value, dict):
        names = [str(value[name]) for name in sorted(value, key=lambda name: (not isinstance(name, int), str(name).zfill(9)))]
        return f". Write a list: [{', '.join(names)}]"[:200]
    values = value if isinstance(value, list) else [value]
    if action.type is str and any(item is None or isinstance(item, bool) for item in values):
        return ". Quote yes, no, on, off, true, false and null, which are not text in YAML: 'no'"
    return ""


def _scalar(convert: Callable, value: Any) -> Any:
    if value is None or isinstance(value, (dict, list, bytes)) or isinstance(value, bool) and convert is not string_to_bool:
        raise ValueError
    return _with_home(convert(str(value)))


def flat(*instances: Any) -> dict:
    """Return {name: value} of all options of configurations or sections."""
    options = {}
    for instance in instances:
        for f in fields(instance):
            value = getattr(instance, f.name)
            options |= flat(value) if is_dataclass(value) else {f.name: asdict(instance)[f.name]}
    return options


def write_config(config: Any, path: Path) -> None:
    """Write a configuration as a YAML file for --config, with a comment above each section."""
    lines = []
    for section in fields(config):
        lines += ["", f"# {section.name}"]
        for name, value in asdict(getattr(config, section.name)).items():
            if name == "resume":  # a question of the command, not of the run
                continue
            lines.append(f"{name}: {yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=2**20).strip()[1:-1]}")
    write_text(path, "\n".join(lines[1:]) + "\n")


def printable(config: Any) -> dict:
    """Return all options as trackers take them: numbers, booleans and text."""
    return {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in flat(config).items()}


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as aligned columns; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a main function: ValueError and OSError end with one sentence and exit status 1; MSCL_HF_TRACEBACK=1 keeps the traceback."""

    @functools.wraps(main)
    def run() -> None:
        _reduce_garbage_collection()
        if not sys.stderr.isatty():
            logging.disable_progress_bar()  # of transformers and huggingface_hub
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when datasets is imported, by the recipe
        try:
            main()
        except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (ValueError, OSError) as error:
            if os.environ.get("MSCL_HF_TRACEBACK"):
                raise
            sys.exit(f"error: {error}")

    return run


def _reduce_garbage_collection() -> None:
    """Run full garbage collections rarely, and none at exit: each visits half a million objects of the libraries (0.3 s).

    Young objects are collected as before. Python 3.14 ignores the threshold.
    """
    gc.set_threshold(*gc.get_threshold()[:2], 1000)
    atexit.register(gc.freeze)

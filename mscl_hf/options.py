"""Command lines: dataclasses parsed by transformers' HfArgumentParser, from flags and a YAML file; flags win."""

import difflib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse(kinds: Sequence[type], description: str, argv: Sequence[str] | None = None) -> tuple:
    """One instance of each dataclass. Raises ValueError for unknown or ill-typed options, with the near names."""
    parser = HfArgumentParser(list(kinds), description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of options, e.g. recipes/configs/camvid.yaml; flags win over it")
    argv = list(sys.argv[1:] if argv is None else argv)
    known = {action.dest: action for action in parser._actions}
    path, _ = _config_path(argv)
    if path is not None:
        parser.set_defaults(**_read_yaml(path, known))
    parsed = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    *instances, extra, remaining = parsed if len(parsed) == len(kinds) + 2 else (*parsed, None)
    if remaining:
        raise ValueError(_unknown(remaining[0], [flag for action in parser._actions for flag in action.option_strings]))
    return tuple(instances)


def _config_path(argv: list[str]) -> tuple[str | None, int]:
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return argv[i + 1], i
        if word.startswith("--config="):
            return word.split("=", 1)[1], i
    return None, -1


def _read_yaml(path: str, known: dict) -> dict:
    if not Path(path).is_file():
        raise ValueError(f"no configuration file {path}; give the path of a YAML file to --config")
    content = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'option: value' lines, got a {type(content).__name__}")
    options = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{path}: " + _unknown(key, list(known)))
        options[key] = _typed(path, key, value, known[key])
    return options


def _typed(path: str, key: str, value, action):
    """The value as the flag would have read it."""
    if value is None or action.type is None or isinstance(value, bool):
        return value
    try:
        return [action.type(v) for v in value] if isinstance(value, list) else action.type(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {key} is {value!r}, which cannot be read as {action.type}") from error


def _unknown(word: str, known: list[str]) -> str:
    flags = [flag.replace("_", "-") for flag in known]
    near = difflib.get_close_matches(word.split("=")[0].replace("_", "-"), flags, n=3)
    return f"unknown option {word}; near: {', '.join(dict.fromkeys(near)) or 'none'}; all options: --help"


def flat(*instances) -> dict:
    """All options of a run in one dict, for its record."""
    return {key: value for instance in instances for key, value in asdict(instance).items()}


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

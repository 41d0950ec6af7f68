"""Color tables: masks of colors, and files that name the color of each class (CSV, JSON, label maps of CVAT and LabelMe)."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DatasetConfig
from ..config.data import OWN_MASKS
from ..losses.labels import IGNORE_INDEX
from ..messages import first_three
from ..models.fields_mscl import is_plain
from ..records.files import read_text

Color = tuple[int, int, int]
FORMS = 'CSV lines such as road,128,64,128, JSON such as {"road": [128, 64, 128]}, or a label map of CVAT (road:128,64,128::)'
IGNORED_NAME = "__ignore__"  # as in Labelme
LABEL_MAP_LINE = re.compile(r"(?P<name>.*?):(?P<color>\s*\d+\s*,\s*\d+\s*,\s*\d+\s*)(?::.*)?")
COLUMNS = {"name": ("name", "class", "label", "title"), "r": ("r", "red"), "g": ("g", "green"), "b": ("b", "blue")}


@dataclass(frozen=True)
class ColorTable:
    """classes: names of the train ids. ids: the train id of each color (R, G, B); 255 = ignored."""

    classes: tuple[str, ...]
    ids: dict[Color, int]

    @cached_property
    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The colors as ascending numbers, (N,) int64, and the id of each, (N,) uint8."""
        numbers = {_packed(np.array(color)).item(): id for color, id in self.ids.items()}
        return np.array(sorted(numbers), np.int64), np.array([numbers[number] for number in sorted(numbers)], np.uint8)

    def train_ids(self, colors: np.ndarray) -> tuple[np.ndarray, Counter]:
        """Return the train ids (H, W) uint8 of a mask (H, W, 3), and the pixels of each color that the table does not name."""
        numbers, ids = self.sorted
        packed = _packed(colors)
        positions = np.searchsorted(numbers, packed).clip(max=len(numbers) - 1)
        is_known = numbers[positions] == packed
        if is_known.all():
            return ids[positions], Counter()
        unknown, counts = np.unique(packed[~is_known], return_counts=True)
        return ids[positions], Counter({_unpacked(number): int(count) for number, count in zip(unknown, counts)})

    def as_fields(self) -> dict[str, int]:
        """Return {"R,G,B": train id}, as a model's configuration stores it."""
        return {",".join(map(str, color)): id for color, id in self.ids.items()}


def _packed(colors: np.ndarray) -> np.ndarray:
    """Return colors (..., 3) of 8 or 16 bits as numbers (...) int64."""
    wide = colors.astype(np.int64)
    return wide[..., 0] << 32 | wide[..., 1] << 16 | wide[..., 2]


def _unpacked(number: int) -> Color:
    return tuple(int(number) >> shift & 0xFFFF for shift in (32, 16, 0))


def color_table(
    class_colors: str | Path | dict | None,
    ignored_colors: Sequence[str] | None = None,
    classes: str | Path | Sequence[str] | None = None,
    **others: Any,
) -> ColorTable | None:
    """Return the color table of --class-colors, or None without it.

    class_colors: a file (see FORMS), its text as JSON, or {name: color}. ignored_colors: "R,G,B" or three numbers each.
    classes: names that the table has to have, in this order. others: options that a table excludes; they must be empty.
    Raises ValueError.
    """
    if class_colors is None:
        if ignored_colors:
            raise ValueError(f"--ignored-colors is {' '.join(map(str, ignored_colors))} without --class-colors. Give a table of colors.")
        return None
    for name, value in others.items():
        if value:
            raise ValueError(f"--class-colors is given with --{name.replace('_', '-')}, which reads ids. Leave out one of them.")
    table = _table(read_colors(class_colors), [parse_color(color, "--ignored-colors") for color in ignored_colors or ()], str(class_colors))
    if classes is not None and list(table.classes) != list(classes):
        raise ValueError(
            f"--classes is {first_three(list(classes))} and --class-colors names {first_three(table.classes)}; expected the same names. "
            "Leave out --classes."
        )
    return table


def _table(named: Sequence[tuple[str, Color]], ignored: Sequence[Color], source: str) -> ColorTable:
    """Return the table of (name, color) pairs in the order of the classes. Raises ValueError for a color with two meanings."""
    source = source if len(source) < 100 else "a table"
    names = list(dict.fromkeys(name for name, _ in named if name != IGNORED_NAME))
    if not 1 <= len(names) <= IGNORE_INDEX:
        raise ValueError(f"--class-colors is {source} with {len(names)} classes; expected 1 to {IGNORE_INDEX}. Give each a color.")
    if wrong := [name for name in names if not (is_plain(name) and name.strip())]:
        raise ValueError(f"--class-colors is {source} with the name {wrong[0]!r}; expected text without control characters. Correct it.")
    ids: dict[Color, int] = {}
    for name, color in [*named, *((IGNORED_NAME, color) for color in ignored)]:
        id = IGNORE_INDEX if name == IGNORED_NAME else names.index(name)
        if ids.setdefault(color, id) != id:
            other = IGNORED_NAME if ids[color] == IGNORE_INDEX else names[ids[color]]
            raise ValueError(f"--class-colors is {source}, where {other!r} and {name!r} have the color {color}. Give each its own color.")
    return ColorTable(tuple(names), ids)


def parse_color(color: Any, source: str) -> Color:
    """Return (R, G, B) of "128,64,128", "#804080" or three numbers. Raises ValueError."""
    try:
        if isinstance(color, str) and (match := re.fullmatch(r"\s*#?([0-9a-fA-F]{6})\s*", color)):
            return tuple(bytes.fromhex(match[1]))
        parts = color.split(",") if isinstance(color, str) else list(color)
        values = tuple(int(part) for part in parts if not isinstance(part, bool))
        if len(parts) != 3 or len(values) != 3 or not all(0 <= value <= 255 and value == float(part) for value, part in zip(values, parts)):
            raise ValueError
        return values
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{source} has the color {str(color)[:60]!r}; expected R,G,B with values in 0..255. Correct it.") from None


def read_colors(source: str | Path | dict) -> list[tuple[str, Color]]:
    """Return the (name, color) pairs of a table in their order. Raises ValueError."""
    if isinstance(source, dict):
        return _of_json(source, "--class-colors")
    if str(source).lstrip().startswith(("{", "[")):
        return _of_json(_parsed(str(source), "--class-colors"), "--class-colors")
    if not os.path.isfile(source):
        raise ValueError(f"--class-colors is {source}, which is not a file; expected {FORMS}.")
    try:
        text = read_text(Path(source))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--class-colors is {source}, which cannot be read as text ({error}); expected {FORMS}.") from error
    if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return _of_json(_parsed(text, str(source)), str(source))
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")]
    if lines and all(LABEL_MAP_LINE.fullmatch(line.strip()) for _, line in lines):
        matches = [(number, LABEL_MAP_LINE.fullmatch(line.strip())) for number, line in lines]
        return [(match["name"].strip(), parse_color(match["color"], f"line {number} of {source}")) for number, match in matches]
    return _of_csv(lines, source)


def _parsed(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON ({error}); expected {FORMS}.") from error


def _of_json(content: Any, source: str) -> list[tuple[str, Color]]:
    """Return the pairs of {name: color or list of colors}, or of objects with a name and a color, as CVAT and Supervisely write them."""
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        content = content["classes"]
    pairs = list(content.items()) if isinstance(content, dict) else []
    for number, entry in enumerate(content if isinstance(content, list) else (), 1):
        values = {str(key).lower(): value for key, value in entry.items()} if isinstance(entry, dict) else {}
        name = next((values[key] for key in COLUMNS["name"] if key in values), None)
        color = values.get("color", [next((values[key] for key in COLUMNS[band] if key in values), None) for band in "rgb"])
        if not isinstance(name, str):
            raise ValueError(f"{source} has no name in entry {number}; expected {FORMS}.")
        pairs.append((name, color))
    if not pairs:
        raise ValueError(f"{source} names no color; expected {FORMS}.")
    listed = [(name, colors if _is_list_of_colors(colors) else [colors]) for name, colors in pairs]
    return [(str(name), parse_color(color, f"{source}, {str(name)!r},")) for name, colors in listed for color in colors]


def _is_list_of_colors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(color, (list, str)) for color in value)


def _of_csv(lines: Iterable[tuple[int, str]], source: str | Path) -> list[tuple[str, Color]]:
    """Return the pairs of lines name,r,g,b, separated by commas, semicolons or tabs. A first line without numbers names the columns."""
    lines = list(lines)
    if not lines:
        raise ValueError(f"--class-colors is {source}, which is empty; expected {FORMS}.")
    delimiter = max(",;\t", key=lines[0][1].count)
    rows = [(n, [cell.strip() for cell in row]) for n, line in lines for row in csv.reader(StringIO(line), delimiter=delimiter)]
    columns = [0, 1, 2, 3]
    header = [cell.lower().lstrip("\ufeff") for cell in rows[0][1]]
    if not any(cell.isdecimal() for cell in header):
        columns = [next((header.index(word) for word in words if word in header), None) for words in COLUMNS.values()]
        if None in columns:
            raise ValueError(f"line {rows[0][0]} of {source} has the columns {', '.join(header)}; expected name, r, g and b. Name them so.")
        rows = rows[1:]
    if wrong := next((number for number, row in rows if len(row) <= max(columns) or not row[columns[0]]), None):
        raise ValueError(f"line {wrong} of {source} is no name with three numbers; expected {FORMS}.")
    return [(row[columns[0]], parse_color([row[i] for i in columns[1:]], f"line {number} of {source}")) for number, row in rows]


def with_colors_of_model(
    options: DatasetConfig, class_colors: dict[str, int] | None, classes: Sequence[str], log: Callable[[str], None] = print
) -> DatasetConfig:
    """Return the options with the table of colors of a model's training if they do not say how masks are read, which is logged.

    class_colors, classes: of the model's configuration. Raises ValueError if a color has another class in the options.
    """
    if not class_colors or options.dataset not in OWN_MASKS or options.label_map or options.reduce_labels:
        return options
    if options.class_colors is None:
        colors = {name: [color for color, id in class_colors.items() if id == number] for number, name in enumerate(classes)}
        ignored = [color for color, id in class_colors.items() if id == IGNORE_INDEX]
        log(f"the masks are read as in the model's training: --class-colors with {len(class_colors)} colors; --label-map reads ids instead")
        return replace(options, class_colors=json.dumps(colors), ignored_colors=ignored or None)
    for color, id in color_table(options.class_colors, options.ignored_colors).as_fields().items():
        if id != (expected := class_colors.get(color, id)):
            names = ["the ignored label" if number == IGNORE_INDEX else repr(classes[number]) for number in (id, expected)]
            raise ValueError(
                f"--class-colors is {options.class_colors}, where {color} is {names[0]}; expected {names[1]}, as in the model's training. "
                "Leave the option out."
            )
    return options


def suggested_table(colors: Counter) -> str:
    """Return a table as JSON for the colors found in masks, to be saved and edited."""
    return json.dumps({f"class_{number}": list(color) for number, (color, _) in enumerate(colors.most_common())})


def listed_colors(colors: Counter, pixels: int, most: int) -> str:
    """Return the most common colors with their shares of the pixels."""
    common = [f"({', '.join(map(str, color))}) {count / pixels:.1%}" for color, count in colors.most_common(most)]
    return ", ".join(common) + (" and others" if len(colors) > most else "")

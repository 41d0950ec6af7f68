"""`--dataset list`: a CSV or JSON file with a line for each image: its path, that of its mask, and its split."""

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ..messages import first_three
from ..records.files import read_text
from .class_colors import color_table
from .class_inference import infer_classes
from .dataset import SegmentationData
from .files import from_files, open_masks, unique_names
from .folder_names import available_split
from .label_map import class_names, make_table

EXPECTED = "a CSV file with the columns image, mask and split, or a JSON list of such objects; paths are relative to the file"
COLUMNS = {
    "image": ("image", "images", "image_path", "img", "file", "file_name", "filename", "path"),
    "mask": ("mask", "masks", "mask_path", "label", "label_path", "annotation", "segmentation"),
    "split": ("split", "subset", "fold", "set"),
}  # the usual names of each column


def build_list(
    split: str,
    data_dir: str | Path | None,
    unlabelled: bool = False,
    classes: str | Path | Sequence[str] | None = None,
    num_classes: int | None = None,
    label_map: dict[int, int] | str | None = None,
    reduce_labels: bool = False,
    class_colors: str | Path | dict | None = None,
    ignored_colors: Sequence[str] | None = None,
) -> SegmentationData:
    """Open the images that a file lists. Without a column split all are the split 'train'; images without a mask are unlabelled."""
    if data_dir is None:
        raise ValueError(f"--data-dir is missing; --dataset list needs {EXPECTED}.")
    file = Path(data_dir)
    rows = read_rows(file)
    splits = dict.fromkeys(row["split"] or "train" for row in rows)
    chosen = available_split(split, list(splits), str(file))
    rows = [row for row in rows if (row["split"] or "train") == chosen]
    images = [file.parent / row["image"] for row in rows]
    names, note = unique_names(images, file.parent), f" listed in {file}"
    _require(images, file, rows, "image")
    repeated = len(images) - len(set(images))
    if repeated:
        raise ValueError(f"{file} lists {repeated} images of the split {chosen!r} more than once. Remove the repeated lines.")
    if unlabelled or not any(row["mask"] for row in rows):
        note += "" if unlabelled else "; no masks: it has no column mask, or the column is empty"
        return from_files("list", split, names, images, None, (), note=note)
    kept = [index for index, row in enumerate(rows) if row["mask"]]
    note += f"; {len(rows) - len(kept)} images without a mask are left out" if len(kept) < len(rows) else ""
    images, names, rows = ([column[index] for index in kept] for column in (images, names, rows))
    masks = [file.parent / row["mask"] for row in rows]
    _require(masks, file, rows, "mask")
    named, table = class_names(classes, num_classes), make_table(label_map, reduce_labels)
    colors = color_table(class_colors, ignored_colors, named, label_map=label_map, reduce_labels=reduce_labels)
    all_classes = colors.classes if colors else named or infer_classes(open_masks(masks), table)
    return from_files("list", split, names, images, masks, all_classes, table, note=note, colors=colors)


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return {"image", "mask", "split"} of each line, "" for an empty one. Raises ValueError."""
    if not file.is_file():
        raise ValueError(f"--data-dir is {file}, which is not a file; expected {EXPECTED}.")
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--data-dir is {file}, which cannot be read as text ({error}); expected {EXPECTED}.") from error
    entries = _of_json(text, file) if text.lstrip("\ufeff \t\r\n").startswith(("[", "{")) else _of_csv(text)
    names = {name.lower(): name for _, entry in entries for name in entry}
    columns = {column: next((names[usual] for usual in words if usual in names), None) for column, words in COLUMNS.items()}
    if columns["image"] is None:
        raise ValueError(f"--data-dir is {file} with the columns {first_three(list(names)) or 'none'}; expected {EXPECTED}. Name them so.")
    rows = [{column: str(entry.get(name) or "").strip() for column, name in columns.items()} for _, entry in entries]
    wrong = next((number for (number, _), row in zip(entries, rows) if not row["image"]), None)
    if wrong is not None or not rows:
        raise ValueError(f"{file} has no image in line {wrong}; expected a path. Complete or remove it." if rows else f"{file} is empty.")
    return rows


def _of_csv(text: str) -> list[tuple[int, dict[str, str]]]:
    """Return (line, {column: value}) of a CSV text with commas, semicolons or tabs, whose first line names the columns."""
    lines = text.lstrip("\ufeff").splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    reader = csv.DictReader(StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True)
    return [(number, {str(key).strip(): value for key, value in row.items()}) for number, row in enumerate(reader, 2)]


def _of_json(text: str, file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (entry, {name: value}) of a JSON list of objects, or of one object a line."""
    try:
        content = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--data-dir is {file}, which is not valid JSON ({error}); expected {EXPECTED}.") from error
    if not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"--data-dir is {file}, whose list holds other things than objects; expected {EXPECTED}.")
    return list(enumerate(content, 1))


def _require(paths: Sequence[Path], file: Path, rows: Sequence[dict[str, str]], column: str) -> None:
    """Raise ValueError for files that do not exist."""
    missing = [row[column] for path, row in zip(paths, rows) if not path.is_file()]
    if missing:
        raise ValueError(
            f"{file} lists {len(missing)} {column} files that do not exist below {file.parent}: {first_three(missing)}. Correct the paths."
        )

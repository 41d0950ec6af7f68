"""Class names, and the label map from ids stored in masks to train ids."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import DatasetConfig
from ..config.data import OWN_MASKS
from ..losses.labels import IGNORE_INDEX
from ..models.fields_mscl import is_plain
from ..records.files import read_text
from .class_colors import color_table

HIGHEST_ID = 65_535  # of a mask of 16 bits


def class_names(classes: str | Path | Sequence[str] | None, num_classes: int | None) -> tuple[str, ...] | None:
    """Return names from a list, a text file with one name a line, "sky,road,car", or a number of classes; None without any.

    Lines of a file that start with # are comments. Raises ValueError, also for a blank line or entry between names: it may stand for an id.
    """
    if isinstance(classes, (str, Path)):
        is_file = os.path.isfile(classes)  # Path.is_file raises an error for a long list of names
        if not is_file and Path(classes).suffix == ".txt":
            raise ValueError(f"--classes is {classes}, which does not exist. Give an existing file or a list of names.")
        classes = _lines(Path(classes)) if is_file else _without_blanks(str(classes).split(","), "entry", "")
    if classes is None:
        if num_classes is None:
            return None
        if not 1 <= num_classes <= 255:
            raise ValueError(f"--num-classes is {num_classes}; expected 1 to 255.")
        classes = [f"class_{i}" for i in range(num_classes)]
    if num_classes is not None and num_classes != len(classes):
        raise ValueError(f"--num-classes is {num_classes} and --classes has {len(classes)} names; expected equal numbers. Give one.")
    if not all(is_plain(name) and name.strip() for name in classes):
        raise ValueError(f"--classes is {str(classes)[:100]!r}; expected names that are not empty, without control characters.")
    repeated = [name for name, times in Counter(classes).items() if times > 1]
    if repeated:
        raise ValueError(f"--classes repeats {', '.join(map(repr, repeated[:3]))}; expected different names. Rename or remove one.")
    if not 1 <= len(classes) <= 255:
        raise ValueError(f"--classes has {len(classes)} names; expected 1 to 255. Give one name for each class id.")
    return tuple(classes)


def _lines(path: Path) -> list[str]:
    """Return the names in a text file. Raises ValueError."""
    try:
        lines = [None if line.lstrip().startswith("#") else line for line in read_text(path).splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--classes is {path}, which is neither UTF-8 nor UTF-16 with a byte order mark ({error}). Write one name a line."
        ) from error
    return _without_blanks(lines, "line", f" of {path}")


def _without_blanks(names: Sequence[str | None], unit: str, of_file: str) -> list[str]:
    """Return the names without surrounding blanks. None: a comment. Raises ValueError for a blank one between names."""
    stripped = [None if name is None else name.strip() for name in names]
    filled = [number for number, name in enumerate(stripped) if name]
    for number in range(filled[0], filled[-1]) if filled else ():
        if stripped[number] == "":
            where = f"{unit} {number + 1}{of_file}"
            raise ValueError(f"--classes: {where} is blank; expected a name for each class id. Remove it, or name the class.")
    return [stripped[number] for number in filled]


def make_table(label_map: dict[int, int] | str | None, reduce_labels: bool = False) -> np.ndarray | None:
    """Return the table of a label map: stored id -> train id, 255 = ignored. Ids that it does not name stay; None = all stay.

    (256,) uint8; (65536,) int32 if the map names a 16-bit id.
    reduce_labels: stored 0 becomes the ignored label and every other id goes down by one (ADE20K's convention).
    """
    if not label_map and not reduce_labels:
        return None
    if label_map and reduce_labels:
        shown = " ".join(str(label_map).split())
        raise ValueError(f"--label-map is {shown} and --reduce-labels is given; expected one of them. Write both into the label map.")
    if reduce_labels:
        return np.concatenate([[IGNORE_INDEX], np.arange(254), [IGNORE_INDEX]]).astype(np.uint8)
    train_ids = parse_label_map(label_map)
    table = np.arange(256, dtype=np.uint8) if max(train_ids) < 256 else np.arange(HIGHEST_ID + 1, dtype=np.int32)
    table[list(train_ids)] = list(train_ids.values())
    return table


def parse_label_map(label_map: dict[int, int] | str) -> dict[int, int]:
    """Return {stored id: train id} of such a dict, or of text such as "255:1,7:255". Raises ValueError."""
    try:
        pairs = [pair.split(":") for pair in label_map.split(",")] if isinstance(label_map, str) else label_map.items()
        train_ids, repeated = {}, []
        for stored, train in pairs:
            if any(isinstance(id, (bool, float)) for id in (stored, train)):
                raise ValueError
            if not 0 <= int(stored) <= HIGHEST_ID or not 0 <= int(train) <= IGNORE_INDEX:
                raise ValueError
            repeated += [int(stored)] if int(stored) in train_ids else []
            train_ids[int(stored)] = int(train)
    except (TypeError, ValueError):
        raise ValueError(
            f"--label-map is {label_map!r}; expected STORED:CLASS,... such as 255:1, with stored ids in 0..{HIGHEST_ID} and class ids in "
            f"0..{IGNORE_INDEX}."
        ) from None
    if repeated:
        raise ValueError(f"--label-map is {label_map!r} and repeats the id {repeated[0]}; expected each id once. Leave out one of them.")
    return train_ids


def label_fields(options: DatasetConfig) -> dict[str, dict[str, int] | bool | None]:
    """Return the label map and the table of colors of the options, as fields of a model's configuration."""
    train_ids = parse_label_map(options.label_map) if options.label_map else None
    label_map = train_ids and {str(stored): train for stored, train in train_ids.items()}
    colors = color_table(options.class_colors, options.ignored_colors)
    return {"label_map": label_map, "reduce_labels": options.reduce_labels, "class_colors": colors and colors.as_fields()}


def with_labels_of_model(
    options: DatasetConfig, label_map: dict[str, int] | None, reduce_labels: bool, log: Callable[[str], None] = print
) -> tuple[DatasetConfig, list[str]]:
    """Return the options with the label map of a model's training if they have none, which is logged, and warnings.

    label_map, reduce_labels: of the model's configuration. Raises ValueError if the options and the model map one id to different classes.
    A map of other ids may be right for another data set, and is a warning.
    """
    in_model = (",".join(f"{stored}:{train}" for stored, train in (label_map or {}).items()) or None, reduce_labels)
    in_options = (options.label_map, options.reduce_labels)
    if options.dataset not in OWN_MASKS or in_options == in_model:
        return options, []
    model_flags, option_flags = _in_flags(*in_model), _in_flags(*in_options)
    if not options.label_map and not options.reduce_labels:
        log(f"the masks are read as in the model's training: {model_flags}")
        return replace(options, label_map=in_model[0], reduce_labels=reduce_labels), []
    model_ids, option_ids = _mapped(*in_model), _mapped(*in_options)
    if any(model_ids[i] != option_ids[i] for i in model_ids.keys() & option_ids.keys()):
        raise ValueError(
            f"{option_flags} is given; expected {model_flags}, as in the model's training. Leave the option out."
        )
    differ = model_ids != option_ids
    return options, [f"the masks are read by {option_flags}, and those of the model's training by {model_flags}"] if differ else []


def _in_flags(label_map: str | None, reduce_labels: bool) -> str:
    return f"--label-map {label_map}" if label_map else "--reduce-labels" if reduce_labels else "no label map"


def _mapped(label_map: str | None, reduce_labels: bool) -> dict[int, int]:
    """Return {stored id: train id} of the ids that the options name; --reduce-labels names all."""
    if reduce_labels:
        return dict(enumerate(make_table(None, True).tolist()))
    return parse_label_map(label_map) if label_map else {}

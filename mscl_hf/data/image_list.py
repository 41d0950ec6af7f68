"""The images that `mscl-predict` is given: files, folders and patterns, and the names of their outputs."""

import glob
from collections import Counter
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path
from typing import NamedTuple

from .files import find_images, holds_run, skipped_note, unique_names
from .image_io import IMAGE_SUFFIXES
from .mask_files import separate


class ImageList(NamedTuple):
    """paths: of the images, sorted. names: of their outputs: the path below the folder that holds all, without suffix where that is enough.
    notes: sentences about files that are left out."""

    paths: list[Path]
    names: list[str]
    notes: list[str]


def list_inputs(inputs: Sequence[str], output_dir: Path) -> ImageList:
    """Return the images of --images. Masks beside images, outputs of runs and everything in `output_dir` are left out.

    Raises ValueError where there is no image, or an input is neither file nor folder nor a pattern with matches.
    """
    if not inputs:
        raise ValueError("--images is missing; expected files, a folder or a pattern such as 'photos/*.jpg'. Give it.")
    paths, roots, notes = [], [], []
    for text in inputs:
        found, root, note = _matches(text)
        inside = [path for path in found if path.resolve().is_relative_to(output_dir.resolve())]
        notes += [f"{text}: {len(inside)} image(s) in the output folder are left out"] if inside else []
        notes += note
        paths += [path for path in found if path not in inside]
        roots.append(root)
    if not paths:
        raise ValueError(f"--images is {' '.join(inputs)}, which holds no images to predict{'; '.join(['', *notes])}. Give other images.")
    paths = sorted(dict.fromkeys(paths))
    root = roots[0] if len(set(roots)) == 1 else Path(commonpath([root.absolute() for root in roots]))
    below = paths if len(set(roots)) == 1 else [path.absolute() for path in paths]
    return ImageList(paths, output_names(below, root), notes)


def output_names(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the paths below the root without suffix, with it where several differ in nothing else, also if only in upper and lower case.

    Raises ValueError for two images whose names with suffix would be the same.
    """
    names = unique_names(paths, root)
    for _ in range(2):  # a.jpg beside a.png gets its suffix back, and may then equal a.jpg.png without its own
        count = Counter(name.casefold() for name in names)
        names = [name if count[name.casefold()] == 1 else path.relative_to(root).as_posix() for name, path in zip(names, paths)]
    if len({name.casefold() for name in names}) < len(names):
        count = Counter(name.casefold() for name in names)
        first, second, *_ = [path for path, name in zip(paths, names) if count[name.casefold()] > 1]
        raise ValueError(f"{first} and {second} would have one output; expected images with different names. Rename one of them.")
    return names


def _matches(text: str) -> tuple[list[Path], Path, list[str]]:
    """Return the images of one input, the folder below which their names begin, and notes on what is left out."""
    path = Path(text)
    if path.is_dir():
        if holds_run(path):
            raise ValueError(f"--images is {text}, which holds the output of a run; expected a folder of images. Give another folder.")
        listing = find_images(path)
        notes = [text + note for note in [skipped_note(listing.skipped)] if note]
        return _without_masks(listing.images, path, text, notes)
    if path.is_file():
        return [path], path.parent, []
    if not glob.has_magic(text):
        raise ValueError(f"--images is {text}, which does not exist; expected files, a folder or a pattern. Correct the path.")
    root = _fixed_part(path)
    files = sorted(Path(match) for match in glob.glob(text, recursive=True) if Path(match).suffix.lower() in IMAGE_SUFFIXES)
    outputs = {folder: holds_run(folder) for file in files for folder in file.parents if folder != root and folder.is_relative_to(root)}
    images = [file for file in files if file.is_file() and not any(outputs.get(folder) for folder in file.parents)]
    if not images:
        raise ValueError(f"--images is {text}, which matches no images; expected files of {' '.join(IMAGE_SUFFIXES)}. Correct the pattern.")
    return _without_masks(images, root, text, [])


def _without_masks(files: Sequence[Path], root: Path, text: str, notes: list[str]) -> tuple[list[Path], Path, list[str]]:
    try:
        separated = separate(files, root)
    except ValueError as error:  # masks or images of the same names: its remedy names options of training
        problem = str(error).partition(". If all are")[0]
        raise ValueError(f"{problem}. Give the images by a pattern such as '{root}/*.jpg', or rename one of each pair.") from error
    masks = f"{text}: {separated.left_out} mask(s) are left out; to predict them, name the files themselves"
    return separated.images, root, notes + ([masks] if separated.left_out else [])


def _fixed_part(pattern: Path) -> Path:
    """Return the folder before the first part with a wildcard."""
    parts = pattern.parts
    return Path(*parts[: next(number for number, part in enumerate(parts) if glob.has_magic(part))])

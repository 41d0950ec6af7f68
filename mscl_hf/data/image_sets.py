"""Split lists and color tables beside images and masks, as CVAT's "Segmentation mask" and other exports in the layout of VOC have them."""

import re
from contextlib import suppress
from pathlib import Path

from ..messages import first_three
from ..records.files import read_text
from .class_colors import read_colors
from .files import IMAGE_SUFFIXES
from .folder_names import available_split, image_folder, split_folders
from .mask_files import Separated, key, normal

TABLE_NAME = re.compile(r"(?i)_?(?:label_?map|class_?dict|class_?colors?|colors?|classes|labels)\.(?:txt|csv|json)")


def split_list(split: str, data_dir: Path | None) -> Path | None:
    """Return ImageSets/Segmentation/SPLIT.txt; the only list, such as default.txt, is that of train. None if there are no lists.

    Raises UnknownSplit if there are lists of other splits.
    """
    folder = None if data_dir is None else data_dir / "ImageSets" / "Segmentation"
    if folder is None or not folder.is_dir() or split_folders(image_folder(data_dir, True) or data_dir):
        return None
    lists = {path.stem.lower(): path for path in sorted(folder.glob("*.txt"))}
    if not lists or (len(lists) == 1 and split == "train"):
        return next(iter(lists.values()), None)
    return lists[available_split(split, lists, str(folder))]


def listed_images(separated: Separated, root: Path, listed_in: Path) -> Separated:
    """Return only the images that the list names. Raises ValueError for names that do not exist."""
    lines = [line.strip().strip('"') for line in read_text(listed_in).splitlines()]
    names = {normal(line[: -len(Path(line).suffix)] if Path(line).suffix.lower() in IMAGE_SUFFIXES else line) for line in lines if line}
    images = [image for image in separated.images if key(image, root) in names]
    if missing := sorted(names.difference(key(image, root) for image in images)):
        raise ValueError(f"{listed_in} lists {len(missing)} images that {root} does not hold: {first_three(missing)}. Add them.")
    return separated._replace(images=images)


def table_nearby(folder: Path) -> Path | None:
    """Return the file in a folder that holds a table of colors, such as labelmap.txt; None if there is none, or more than one."""
    tables = []
    for path in sorted(folder.iterdir()):
        if TABLE_NAME.fullmatch(path.name) and path.is_file():
            with suppress(ValueError):
                tables += [path] if read_colors(path) else []
    return tables[0] if len(tables) == 1 else None

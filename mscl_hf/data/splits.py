"""Open the splits that the options name, and check them: image range, unreadable samples, labels."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import datasets

from ..config import DataConfig, DatasetConfig
from ..config.data import OWN_DATA
from ..messages import flag
from ..records.files import read_text, write_text
from ..records.run_folder import VAL_SPLIT
from .band_statistics import band_statistics
from .cache import CachedData
from .checks import check_data, run_once
from .dataset import LabelCounts, SegmentationData
from .folder_names import UnknownSplit, split_names
from .hub_layout import row_names
from .image_range import check_values, find_image_range
from .layouts import DATASETS, load_data, options_of
from .shards import Row
from .stream import SegmentationStream
from .val_fraction import drawn_names, is_list, listed_part, read_names, split_of_model, write_names

HELD_OUT = {"hf": "validation"}  # the held-out split; "val" of other layouts


def open_split(options: DatasetConfig, split: str, unlabelled: bool = False) -> SegmentationData | SegmentationStream:
    """Open one split of the data set that the options name. A split that is a list of names is a part of the training split."""
    train_split, val_split = (getattr(options, name, None) for name in ("train_split", "val_split"))
    train_split = train_split or "train"
    data = _open_split(options, train_split if is_list(split) else split, unlabelled)
    if is_list(split) or (split == train_split and is_list(val_split)):
        return listed_part(data, split if is_list(split) else val_split, is_list(split))
    return data


def _open_split(options: DatasetConfig, split: str, unlabelled: bool) -> SegmentationData | SegmentationStream:
    """Open one split of the layout."""
    names = {"image_range", "resize_masks", "bands"}.union(*map(options_of, DATASETS)) - {"data_dir"}
    arguments = {name: value for name, value in vars(options).items() if name in names and value not in (None, False)}
    if isinstance(arguments.get("classes"), list) and len(arguments["classes"]) == 1:
        arguments["classes"] = arguments["classes"][0]  # a text file, or "a,b,c"
    try:
        return load_data(options.dataset, split, options.data_dir, unlabelled=unlabelled, **arguments)
    except UnknownSplit as error:
        flags = {getattr(options, name, None): flag(name) for name in ("val_split", "train_split")}  # of training
        raise UnknownSplit(split, error.available, error.where, error.remedy, flags.get(split, "the split")) from error


def open_unlabelled(folder: str, options: DataConfig, streaming: bool = False) -> SegmentationData | SegmentationStream:
    """Open the images of --unlabelled FOLDER; with streaming, of a folder of parquet files or a name on the Hub, without reading them."""
    if streaming:
        stored = {"image_range": options.image_range, "bands": options.bands, "image_column": options.image_column}
        return load_data("hf", "train", folder, unlabelled=True, streaming=True, **stored)
    if not Path(folder).is_dir():
        raise ValueError(f"--unlabelled is {folder}, which is not a folder; expected none, rest or a folder of images.")
    return load_data("folder", "train", folder, unlabelled=True, image_range=options.image_range, bands=options.bands)


def open_whole_split(options: DatasetConfig, split: str, classes: tuple[str, ...] = ()) -> SegmentationData:
    """Open a split that is read from end to end: a stream is read into memory, still encoded.

    classes: names for data sets without class names; without these, they are inferred from the masks, and a split may lack some.
    """
    if classes and needs_classes(options):
        options = replace(options, classes=list(classes))
    data = open_split(options, split)
    return data if isinstance(data, SegmentationData) else in_memory(data, list(data.rows()))


def open_held_out_split(
    options: DatasetConfig, split: str, classes: tuple[str, ...], held_out: str | None
) -> SegmentationData:
    """Open a split as `open_whole_split` does, of data from which a training held out images.

    held_out: the list of these images, which are no part of the split train, and are the split val if the data has none; or None.
    """
    try:
        data = open_whole_split(options, split, classes)
    except UnknownSplit:
        if held_out is None or split not in split_names(HELD_OUT.get(options.dataset, "val")):
            raise
        return open_whole_split(options, held_out, classes)
    return data if held_out is None or split != "train" else listed_part(data, held_out, held_out=False)


def needs_classes(options: DatasetConfig) -> bool:
    """Return whether neither the layout nor the options name the classes."""
    return options.dataset in OWN_DATA and options.classes is None and options.num_classes is None and options.class_colors is None


def first_images(source: SegmentationData | SegmentationStream, limit: int) -> SegmentationData:
    """Return data to take up to `limit` images from: stored data itself, or the first rows of a stream, in memory."""
    return source if isinstance(source, SegmentationData) else in_memory(source, source.first_rows(limit)[0])


def in_memory(stream: SegmentationStream, stored: list[Row]) -> SegmentationData:
    """Return rows of a stream as data that is not streamed, still encoded. Raises ValueError without rows."""
    if not stored:
        raise ValueError(f"{stream.name}/{stream.split} has no rows; expected at least one image. Give another split or data set.")
    columns = ("image", "mask") if stream.labelled else ("image",)
    features = datasets.Features({column: datasets.Image(decode=False) for column in columns})
    rows = datasets.Dataset.from_list(stored, features=features)
    rows = rows.add_column("name", row_names(rows))
    names = ("classes", "name", "split", "label_table", "image_range", "colors", "resize_masks", "bands")
    return SegmentationData(rows, **{name: getattr(stream, name) for name in names})


def place_of(options: DataConfig, unlabelled: str = "none") -> str:
    """Return where the images and masks of a run lie: folders as absolute paths, other names unchanged."""
    folders = (options.data_dir, options.image_dir, options.mask_dir, options.annotations)
    places = (*folders, None if unlabelled in ("none", "rest") else unlabelled)
    return ", ".join(str(Path(place).resolve()) if Path(place).exists() else place for place in places if place)


def open_held_out(options: DataConfig, log: Callable[[str], None] = print, classes: tuple[str, ...] = ()) -> SegmentationData | None:
    """Open the held-out split without its bad samples; None if there is none and the options name none.

    classes: see `open_whole_split`.
    """
    if options.val_split == "none":
        return None
    split = options.val_split or HELD_OUT.get(options.dataset, "val")
    try:
        data = open_whole_split(options, split, classes)
    except UnknownSplit as error:
        if options.val_split is not None or options.dataset not in OWN_DATA:
            raise
        log(
            f"no split {split!r} in {error.where}: no mean IoU is measured on held-out masks; give --val-fraction 0.2, add a split, or "
            "name another by --val-split"
        )
        return None
    if not data.labelled:
        log(f"no held-out masks in {data.name}/{data.split}, so that no mean IoU is measured: {data.note}")
        return None
    check_values(data, log)
    return usable(data, options, log)


def has_masks(options: DataConfig, split: str, classes: tuple[str, ...]) -> bool:
    """Return whether the data has masks of this split. classes: see `open_whole_split`. A split on the Hub is not looked for."""
    if options.dataset == "hf":
        return False
    with suppress(ValueError):  # as for an unknown split
        return open_split(replace(options, classes=list(classes)) if needs_classes(options) else options, split).labelled
    return False


def with_val_split(options: DataConfig, out: Path, model: str | None, log: Callable[[str], None] = print) -> DataConfig:
    """Return the options with a list of held-out images as val_split if they have a val_fraction, or if the model's training had one.

    The list is that of this run, or that of the model that the run starts from if it names images of this data, or a new one; it is kept
    in the run's folder `out`. Raises ValueError for options that contradict, and if the data has a held-out split.
    """
    of_model = _list_of_model(options, model)
    if options.val_fraction is None and (of_model is None or options.val_split is not None or _has_held_out_split(options)):
        return options
    if options.val_split is not None and not is_list(options.val_split) or options.streaming:
        other = "--streaming" if options.streaming else f"--val-split {options.val_split}"
        raise ValueError(f"--val-fraction is {options.val_fraction} and {other} is given. Leave out one of them.")
    run_once(lambda: out.mkdir(parents=True, exist_ok=True))
    own, earlier = out / VAL_SPLIT, [options.val_split, out / VAL_SPLIT, of_model]
    chosen = run_once(lambda: next((str(path) for path in earlier if path is not None and Path(path).is_file()), None))
    if chosen is not None:
        log(f"held out as in {chosen}: {len(read_names(chosen))} images")
        run_once(lambda: None if Path(chosen) == own else write_text(own, read_text(Path(chosen))))
    else:
        if _has_held_out_split(options):
            split = HELD_OUT.get(options.dataset, "val")
            raise ValueError(f"--val-fraction is {options.val_fraction}, and the data has the split {split!r}. Leave the option out.")
        data = open_split(options, options.train_split or "train")
        names = run_once(lambda: drawn_names(data, options.val_fraction, options.subset_seed))
        run_once(lambda: write_names(own, names, options))
        log(f"--val-fraction {options.val_fraction:g}: {len(names)} of {len(data)} images are held out, listed in {own}")
    return replace(options, val_split=str(own))


def _list_of_model(options: DataConfig, model: str | None) -> str | None:
    """Return the list of images that the model's training held out, if images of this training split are among them."""
    path = None if model is None or options.streaming else split_of_model(options, model)
    if path is None:
        return None
    names = open_split(options, options.train_split or "train", unlabelled=True).names
    return path if not {*read_names(path)}.isdisjoint(names) else None


def _has_held_out_split(options: DataConfig) -> bool:
    try:
        open_split(options, HELD_OUT.get(options.dataset, "val"), unlabelled=True)
    except UnknownSplit:
        return False
    return True


def with_image_range(options: DataConfig, unlabelled: str = "none", log: Callable[[str], None] = print) -> DataConfig:
    """Return the options with the image range of the training images, if they have none. unlabelled: see `open_training_data`.

    A given range is compared with the images. Raises ValueError for images that do not fit. The images of a stream are not read.
    """
    if options.streaming:
        return options
    parts = []
    if options.dataset in OWN_DATA:  # images of the other layouts have 8 bits
        parts.append(open_split(options, options.train_split or "train", unlabelled=True))
    if unlabelled not in ("none", "rest"):
        parts.append(open_unlabelled(unlabelled, options))
    if options.image_range is None:
        image_range = find_image_range(parts, log) if parts else None
        return options if image_range is None else replace(options, image_range=list(image_range))
    if not any([check_values(part, log) for part in parts]):
        low, high = options.image_range
        log(f"image range {low} to {high}: no training image holds more than 8 bits; 8-bit values are not scaled by it")
    return options


def band_statistics_of(
    options: DataConfig, unlabelled: str = "none", log: Callable[[str], None] = print
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the bands of the training images; of a stream, of its first rows. See `band_statistics`."""
    data = open_split(options, options.train_split or "train", unlabelled=True)
    parts = [data if isinstance(data, SegmentationData) else in_memory(data, data.first_rows()[0])]
    if unlabelled not in ("none", "rest"):
        parts.append(open_unlabelled(unlabelled, options))
    return band_statistics(parts, log)


def usable(data: SegmentationData, options: DatasetConfig, log: Callable[[str], None] = print) -> SegmentationData:
    """Return the data without its bad samples, which are logged, and with counts of its labels. The main process reads the samples.

    Raises BadSample if more samples are bad than --max-bad-images.
    """
    if data.note:
        log(f"{data.name}/{data.split}: {data.note}")

    def check() -> tuple[list[int], list[str], LabelCounts | None]:
        labels = LabelCounts(data.num_classes, len(data)) if data.labelled else None
        good, bad = check_data(data, options.max_bad_images, labels=labels)
        if labels is not None:
            labels.total = len(good)
            if isinstance(data, CachedData):
                labels.vanished = (data.select(good) if bad else data).vanished_classes(labels.present)
        return good, bad, labels

    good, bad, labels = run_once(check)
    for message in bad:
        log(f"skipped: {message}")
    usable_data = data.select(good) if bad else data
    return usable_data if labels is None else usable_data.with_labels(labels)

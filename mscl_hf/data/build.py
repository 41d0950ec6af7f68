"""What a run trains on, from its options: the labelled subset, the unlabelled rest, the held-out masks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets

from ..config import DataConfig
from .cache import DecodedData, decoded
from .dataset import BadSample, SegmentationData, check_data
from .folder_layout import UnknownSplit
from .hub_layout import row_names
from .image_range import check_values, find_image_range
from .label_counts import LabelCounts
from .labels import require_classes, stored_ids
from .layouts import load_data
from .loader import View
from .sampler import Order
from .shards import Row
from .stream import SegmentationStream
from .subset import choose_subset
from .training_data import TrainingData, TrainingImages, TrainingStream

HELD_OUT = {"hf": "validation"}  # the name of the split for checks; "val" elsewhere
# Options that only some layouts have: passed on when given.
LAYOUT_OPTIONS = ("image_dir", "mask_dir", "mask_suffix", "masked_only", "label_map", "image_column", "mask_column", "subset",
                  "data_revision", "streaming", "reduce_labels", "classes", "num_classes", "image_range")  # fmt: skip


def with_image_range(options: DataConfig, unlabelled: str = "none", log: Callable[[str], None] = print) -> DataConfig:
    """The options with the image range that the training images need, where they give none. unlabelled: see `pretraining_data`.

    A given one is compared with the images. Raises ValueError for images that do not fit. A stream is not searched.
    """
    if options.streaming:
        return options
    parts = []
    if options.dataset in ("folder", "hf"):  # images of the others have 8 bits
        parts.append(open_split(options, training_split(options), unlabelled=True))
    if unlabelled not in ("none", "rest"):
        parts.append(load_data("folder", "train", unlabelled, unlabelled=True, image_range=options.image_range))
    if options.image_range is None:
        image_range = find_image_range(parts, log) if parts else None
        return options if image_range is None else replace(options, image_range=list(image_range))
    if not any([check_values(part, log) for part in parts]):
        low, high = options.image_range
        log(f"image range {low} to {high}: no training image holds more than 8 bits; 8-bit values are not scaled by it")
    return options


def open_split(options: DataConfig, split: str, unlabelled: bool = False) -> SegmentationData | SegmentationStream:
    """One split of the data set that the options name."""
    given = {name: getattr(options, name) for name in LAYOUT_OPTIONS if getattr(options, name) not in (None, False)}
    if isinstance(given.get("classes"), list) and len(given["classes"]) == 1:
        given["classes"] = given["classes"][0]  # a text file, or "a,b,c"
    if "data_revision" in given:  # --revision is that of the model
        given["revision"] = given.pop("data_revision")
    return load_data(options.dataset, split, options.data_dir, unlabelled=unlabelled, **given)


def open_whole_split(options: DataConfig, split: str, classes: tuple[str, ...] = ()) -> SegmentationData:
    """The same for what is read from end to end: a stream is read into memory, still encoded.

    classes: their names, where neither the layout nor the options give any; found in the masks otherwise, and one split may lack some.
    """
    if classes and options.dataset in ("folder", "hf") and options.classes is None and options.num_classes is None:
        options = replace(options, classes=list(classes))
    data = open_split(options, split)
    return data if isinstance(data, SegmentationData) else _in_memory(data, list(data.rows()))


def _in_memory(stream: SegmentationStream, stored: list[Row]) -> SegmentationData:
    """Rows of a stream as data that is not streamed, still encoded. Raises ValueError where there are none."""
    if not stored:
        name = f"{stream.name}/{stream.split}"
        raise ValueError(f"{name} is a stream without rows; expected at least one image. Give another split or data set")
    columns = ("image", "mask") if stream.labelled else ("image",)
    features = datasets.Features({column: datasets.Image(decode=False) for column in columns})
    rows = datasets.Dataset.from_list(stored, features=features)
    rows = rows.add_column("name", row_names(rows))
    table, scale = stream.label_table, stream.image_range
    return SegmentationData(rows, stream.classes, stream.name, stream.split, table, image_range=scale)


def place_of(options: DataConfig, unlabelled: str = "none") -> str:
    """Where the images and masks of a run lie: folders as absolute paths, other names as they are."""
    places = (options.data_dir, options.image_dir, options.mask_dir, None if unlabelled in ("none", "rest") else unlabelled)
    return ", ".join(str(Path(place).resolve()) if Path(place).exists() else place for place in places if place)


def training_split(options: DataConfig) -> str:
    return options.train_split or "train"


def open_held_out(options: DataConfig, log: Callable[[str], None] = print, classes: tuple[str, ...] = ()) -> SegmentationData | None:
    """The split for health checks and the final figure, without its bad samples; None when there is none and none was named.

    classes: see `open_whole_split`.
    """
    if options.val_split == "none":
        return None
    split = options.val_split or HELD_OUT.get(options.dataset, "val")
    try:
        data = open_whole_split(options, split, classes)
    except UnknownSplit as error:
        if options.val_split is not None or options.dataset not in ("folder", "hf"):
            raise
        log(f"no held-out masks: {error}")
        return None
    if not data.labelled:
        log(f"no held-out masks in {data.name}/{data.split}: {data.note}")
        return None
    check_values(data, log)
    return usable(data, options, log)


def usable(data: SegmentationData, options: DataConfig, log: Callable[[str], None] = print) -> SegmentationData:
    """The data without its bad samples, each of which is named, and with the counts of its labels; ValueError when more are bad than
    allowed. Logs what was found."""
    if data.note:
        log(f"{data.name}/{data.split}: {data.note}")
    labels = LabelCounts(data.num_classes, len(data)) if data.labelled else None
    good, bad = check_data(data, options.max_bad_images, labels=labels)
    for message in bad:
        log(f"skipped: {message}")
    usable_data = data if not bad else data.select(good)
    if labels is None:
        return usable_data
    labels.total = len(usable_data)
    if isinstance(usable_data, DecodedData):
        labels.vanished = usable_data.vanished_classes(labels.present)
    return usable_data.with_labels(labels)


def usable_for(view: View, data: SegmentationData, options: DataConfig, log: Callable[[str], None]) -> SegmentationData:
    """The same for training: decoded once, at the largest size that the views ask for."""
    return usable(decoded(data, view.short_side, options.image_cache_gb, log), options, log)


def _log_cache(options: DataConfig, log: Callable[[str], None], *parts: SegmentationData | None) -> None:
    """Where decoded images are kept, if any part of the data is."""
    folder = next((part.folder for part in parts if isinstance(part, DecodedData) and part.folder), None)
    if folder is not None:
        limit = f"{options.image_cache_gb:g} GB"
        log(f"decoded images are kept in {folder}, up to {limit} (MSCL_HF_CACHE=DIR moves the cache, --image-cache-gb 0 turns it off)")


def labelled_part(options: DataConfig, view: View, log: Callable[[str], None]) -> tuple[SegmentationData, set[str]]:
    """The usable ones of the chosen labelled samples of the training split, and the names of all that were chosen.

    Raises ValueError where their masks leave fewer than two classes.
    """
    data = open_split(options, training_split(options))
    if data.labelled and options.dataset in ("folder", "hf") and options.classes is None and options.num_classes is None:
        ids = f"ids 0 to {data.num_classes - 1}" if data.num_classes > 1 else "id 0"
        log(f"{data.num_classes} classes found in the masks ({ids}); to be sure of them, give --classes or --num-classes")
    chosen, _ = choose_subset(data, options.train_fraction, options.train_count, options.subset_seed)
    data = data.select(chosen)
    labelled = usable_for(view, data, options, log)
    if labelled.labels is not None and len(labelled.labels.stored) < 2:
        require_classes(labelled, stored_ids(labelled), options)
    return labelled, set(data.names)


def unlabelled_part(
    options: DataConfig, view: View, unlabelled: str, taken: set[str], log: Callable[[str], None]
) -> SegmentationData | None:
    """The usable images without labels: none, the rest of the training split (all but the names taken), or those of a folder."""
    if unlabelled == "none":
        return None
    if unlabelled != "rest":
        return usable_for(view, load_data("folder", "train", unlabelled, unlabelled=True, image_range=options.image_range), options, log)
    images = open_split(options, training_split(options), unlabelled=True)
    rest = [index for index, name in enumerate(images.names) if name not in taken]
    if not rest:
        log("--unlabelled rest: every image of the training split is used with its mask, so none is left; --train-count would leave some")
        return None
    return usable_for(view, replace(images.select(rest), note=""), options, log)  # those of the split are logged with its masks


def finetuning_data(options: DataConfig, view: View, batch_size: int, seed: int, log=print) -> TrainingData:
    """The labelled subset alone."""
    if options.streaming:
        return _streamed(options, view, batch_size, seed)
    data, _ = labelled_part(options, view, log)
    if not data.labelled:
        raise ValueError(f"{data.name}/{data.split} has no masks and fine-tuning needs some ({data.note}); add masks")
    _log_cache(options, log, data)
    order = Order(tuple(range(len(data))), (), batch_size, batch_size, seed)
    return TrainingImages(data, None, view, seed, order, place_of(options))


def pretraining_data(
    options: DataConfig, view: View, batch_size: int, seed: int, unlabelled: str, labelled_share: float, uses_labels: bool, log=print
) -> TrainingData:
    """The labelled subset, and unlabelled images beside it.

    unlabelled: "none", "rest" (the training images that lost their labels), or a folder of images.
    labelled_share: share of labelled images in a batch, where there are both kinds. A method that uses no labels draws from all images
    alike, and no mask is opened.
    """
    if not 0 < labelled_share <= 1:
        raise ValueError(f"--labelled-share is {labelled_share}; it must be above 0 and at most 1")
    if options.streaming:
        return _streamed(options, view, batch_size, seed, uses_labels, unlabelled)
    if not uses_labels:
        return _without_labels(options, view, batch_size, seed, unlabelled, log)
    data, taken = labelled_part(options, view, log)
    if not data.labelled:
        raise ValueError(
            f"{data.name}/{data.split} has no masks and this --method needs them ({data.note}). Add masks, or choose a method that needs "
            "none (--list-methods; for mscl: --losses g, l or g+l)"
        )
    extra = unlabelled_part(options, view, unlabelled, taken, log)
    _log_cache(options, log, data, extra)
    count = batch_size if extra is None else min(batch_size, max(1, round(labelled_share * batch_size)))
    places = () if extra is None else tuple(range(len(extra)))
    order = Order(tuple(range(len(data))), places, batch_size, count, seed)
    return TrainingImages(data, extra, view, seed, order, place_of(options, unlabelled))


def _without_labels(options: DataConfig, view: View, batch_size: int, seed: int, unlabelled: str, log) -> TrainingData:
    """All images alike, and no mask is opened."""
    if unlabelled not in ("none", "rest"):
        raise ValueError(
            f"losses without labels read one set of images, and --unlabelled {unlabelled} is a second one: give that folder as "
            "--dataset folder --data-dir DIR, or --unlabelled rest or none"
        )
    data = open_split(options, training_split(options), unlabelled=True)
    chosen, _ = choose_subset(data, options.train_fraction, options.train_count, options.subset_seed)
    data = usable_for(view, data if unlabelled == "rest" else data.select(chosen), options, log)
    if view.others and len(data) < 2:
        raise ValueError(f"{view.name} views paste an image onto other ones, and {data.name}/{data.split} has only {len(data)}; give more")
    _log_cache(options, log, data)
    order = Order((), tuple(range(len(data))), batch_size, 0, seed)
    return TrainingImages(None, data, view, seed, order, place_of(options))


def _streamed(
    options: DataConfig, view: View, batch_size: int, seed: int, labelled: bool = True, unlabelled: str = "none"
) -> TrainingData:
    if options.train_fraction is not None or options.train_count is not None or unlabelled != "none":
        raise ValueError(
            "a streamed data set has no length to take a part of; leave out --train-fraction, --train-count, --unlabelled, or --streaming"
        )
    if view.others:
        raise ValueError(f"{view.name} views are made of several images, and a stream gives one after another; leave out --streaming")
    stream = open_split(options, training_split(options), unlabelled=not labelled)
    if stream.labelled:
        stream = _counted(stream, options)
    return TrainingStream(stream, view, seed, batch_size, place_of(options))


def _counted(stream: SegmentationStream, options: DataConfig) -> SegmentationStream:
    """The stream with the counts of the labels in its first rows. Raises ValueError where these leave fewer than two classes."""
    labels = LabelCounts(stream.num_classes, None)
    try:
        stored, complete = stream.first_rows()
        if not stored:  # the first shards are empty; others may hold rows
            return stream
        first_rows = _in_memory(stream, stored)
        check_data(first_rows, len(first_rows), labels=labels)
    except BadSample:  # bad rows are counted, and named, when training meets them
        return stream
    labels.total = labels.read if complete else None
    if len(labels.present) < 2 and labels.read:
        require_classes(replace(stream, labels=labels), stored_ids(first_rows), options)
    return replace(stream, labels=labels)

"""The training data of a run, built from its options: labelled subset, unlabelled images, or a stream."""

from collections.abc import Callable
from dataclasses import replace

from ..config import DataConfig
from .cache import CachedData, with_cache
from .checks import check_data, run_once
from .dataset import BadSample, LabelCounts, SegmentationData
from .label_checks import require_classes, stored_ids
from .loader import View
from .sampler import SamplingPlan
from .splits import in_memory, needs_classes, open_split, open_unlabelled, place_of, usable
from .stream import SegmentationStream
from .subset import choose_subset
from .tiles import tiled
from .training_data import TrainingData, TrainingImages, TrainingMix, TrainingStream

OTHER_METHODS = "Add masks, or choose a method that needs none (--list-methods; for mscl: --losses g, l or g+l)."  # advice of pre-training


def usable_for(view: View, data: SegmentationData, options: DataConfig, log: Callable[[str], None]) -> SegmentationData:
    """Return the usable samples, decoded once at the largest size that the views need; with --tile, tiles at the stored size."""
    if options.tile is not None:
        return usable(tiled(with_cache(data, 0, options.image_cache_gb, log), options.tile, log), options, log)
    return usable(with_cache(data, view.short_side, options.image_cache_gb, log), options, log)


def labelled_part(
    options: DataConfig, view: View, log: Callable[[str], None], advice: str = "Add masks."
) -> tuple[SegmentationData, set[str]]:
    """Return the usable labelled samples of the training split, and the names of all chosen ones.

    Raises ValueError, with the advice, if there are no masks, and if the masks leave fewer than two classes.
    """
    data = open_split(options, options.train_split or "train")
    if not data.labelled:
        raise ValueError(f"{data.name}/{data.split} has no masks ({data.note}). {advice}")
    if needs_classes(options):
        ids = f"ids 0 to {data.num_classes - 1}" if data.num_classes > 1 else "id 0"
        source = f"the masks ({ids})" if data.draw is None else f"the annotations ({', '.join(data.classes)})"
        flags = "--classes or --num-classes" if data.draw is None else "--classes"
        log(f"{data.num_classes} classes inferred from {source}; to be sure of them, give {flags}")
    chosen, _ = choose_subset(data, options.train_fraction, options.train_count, options.subset_seed)
    if len(chosen) < len(data):
        log(f"{data.name}/{data.split}: the masks of {len(chosen)} of {len(data)} images are used")
    data = data.select(chosen)
    labelled = usable_for(view, data, options, log)
    if labelled.labels is not None and len(labelled.labels.stored) < 2:
        require_classes(labelled, stored_ids(labelled), options)
    return labelled, set(data.names)


def unlabelled_part(
    options: DataConfig, view: View, unlabelled: str, labelled_names: set[str], log: Callable[[str], None]
) -> SegmentationData | None:
    """Return the usable unlabelled images. unlabelled: "none", "rest" of the training split (all but labelled_names), or a folder."""
    if unlabelled == "none":
        return None
    if unlabelled != "rest":
        return usable_for(view, open_unlabelled(unlabelled, options), options, log)
    images = open_split(options, options.train_split or "train", unlabelled=True)
    indices = [index for index, name in enumerate(images.names) if name not in labelled_names]
    if not indices:
        log("--unlabelled is rest, and every training image is used with its mask; --train-count N uses fewer masks")
        return None
    log(f"--unlabelled rest: {len(indices)} images of the training split are read without masks")
    return usable_for(view, replace(images.select(indices), note=""), options, log)  # the note is logged with the labelled part


def open_training_data(
    options: DataConfig, view: View, batch_size: int, seed: int, log: Callable[[str], None] = print, *, unlabelled: str = "none",
    labelled_share: float = 0.5, uses_labels: bool = True, advice: str = "Add masks.", unlabelled_streaming: bool = False,
) -> TrainingData:  # fmt: skip
    """Open the images to train on: the labelled subset, and unlabelled ones.

    unlabelled: "none", "rest" (the training images outside of the labelled subset), or a folder of images; with unlabelled_streaming a
    folder of parquet files or a name on the Hub.
    labelled_share: share of labelled images in a batch, if there are both. uses_labels: False = batches are drawn from all images alike,
    and no mask is opened. advice: see `labelled_part`.
    """
    if options.streaming:
        return _streamed(options, view, batch_size, seed, uses_labels, unlabelled)
    if uses_labels:
        labelled, names = labelled_part(options, view, log, advice)
        others = None if unlabelled_streaming else unlabelled_part(options, view, unlabelled, names, log)
        count = batch_size if others is None else min(batch_size, max(1, round(labelled_share * batch_size)))
    else:
        labelled, others, count = None, _images_alone(options, view, unlabelled, log), 0
    folder = next((part.folder for part in (labelled, others) if isinstance(part, CachedData) and part.folder), None)
    if folder is not None:
        limit = f"{options.image_cache_gb:g} GB"
        log(f"decoded images are cached in {folder}, up to {limit} (MSCL_HF_CACHE=DIR moves the cache, --image-cache-gb 0 turns it off)")
    place = place_of(options, unlabelled)
    if unlabelled_streaming:
        count = round(labelled_share * batch_size)
        images = TrainingImages(labelled, None, view, seed, SamplingPlan(tuple(range(len(labelled))), (), count, count, seed), place)
        stream = open_unlabelled(unlabelled, options, streaming=True)
        return TrainingMix(images, TrainingStream(stream, view, seed + 1, batch_size - count, place), place)
    plan = SamplingPlan(*(tuple(range(len(part or ()))) for part in (labelled, others)), batch_size, count, seed)
    return TrainingImages(labelled, others, view, seed, plan, place)


def _images_alone(options: DataConfig, view: View, unlabelled: str, log: Callable[[str], None]) -> SegmentationData:
    """Return the usable images of a method without labels: the chosen subset, or with unlabelled "rest" the whole training split."""
    if unlabelled not in ("none", "rest"):
        raise ValueError(
            f"--unlabelled is {unlabelled}; expected rest or none for losses without labels, which read one set of images. Give that "
            "folder as --dataset folder --data-dir DIR."
        )
    data = open_split(options, options.train_split or "train", unlabelled=True)
    chosen, _ = choose_subset(data, options.train_fraction, options.train_count, options.subset_seed)
    data = usable_for(view, data if unlabelled == "rest" else data.select(chosen), options, log)
    if view.others and len(data) < 2:
        raise ValueError(f"{data.name}/{data.split} has {len(data)} image(s); {view.name} views need at least 2. Give more images.")
    return data


def _streamed(options: DataConfig, view: View, batch_size: int, seed: int, labelled: bool, unlabelled: str) -> TrainingData:
    """Open a stream. Raises ValueError for options that need a length or several images at once."""
    defaults = {"--train-fraction": None, "--train-count": None, "--unlabelled": "none", "--tile": None}
    for flag, value in zip(defaults, (options.train_fraction, options.train_count, unlabelled, options.tile)):
        if value != defaults[flag]:
            raise ValueError(f"{flag} is {value} with --streaming; a stream has no length to take a part of. Leave out one of the two.")
    if view.others:
        raise ValueError(f"--streaming is given and {view.name} views use several images at once. Leave out --streaming.")
    stream = open_split(options, options.train_split or "train", unlabelled=not labelled)
    if stream.labelled:
        stream = replace(stream, labels=run_once(lambda: _first_labels(stream, options)))
    return TrainingStream(stream, view, seed, batch_size, place_of(options))


def _first_labels(stream: SegmentationStream, options: DataConfig) -> LabelCounts | None:
    """Count the labels in the first rows of a stream; None if they cannot be used. Raises ValueError for fewer than two classes."""
    labels = LabelCounts(stream.num_classes, None)
    try:
        stored, complete = stream.first_rows()
        if not stored:  # the first shards are empty; others may hold rows
            return None
        first_rows = in_memory(stream, stored)
        check_data(first_rows, len(first_rows), labels=labels)
    except BadSample:  # bad rows are counted and reported during training
        return None
    labels.total = labels.read if complete else None
    if len(labels.present) < 2 and labels.read:
        require_classes(replace(stream, labels=labels), stored_ids(first_rows), options)
    return labels

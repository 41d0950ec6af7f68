"""Weights of the classes in the cross-entropy: balanced by the pixels of the training masks, or read from a file."""

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..messages import first_three, near_names
from ..records.files import read_text
from .dataset import SegmentationData
from .stream import SegmentationStream

BALANCED = "balanced"
LIMITS = (0.1, 10.0)  # of balanced weights: without limits, a class of few pixels would decide the loss alone
HEADER = ["name", "weight"]


def weights_of_classes(given: str, data: SegmentationData | SegmentationStream) -> list[float]:
    """Return the weight of each class. given: "balanced", or a CSV or JSON file. data: the training images, with counts of labels.

    Raises ValueError.
    """
    if given != BALANCED:
        return weights_from_file(given, data.classes)
    if data.labels is None:
        raise ValueError(f"--class-weights is {given}, and the labels of {data.name}/{data.split} were not counted. Give a file.")
    return balanced_weights(data.labels.pixels)


def balanced_weights(pixels: Sequence[int]) -> list[float]:
    """Return N / (K n) within LIMITS for each class with n pixels of N, K the number of classes that occur; 1 for the others."""
    counts = np.asarray(pixels, dtype=np.float64)
    present = counts > 0
    average = counts.sum() / max(1, present.sum())
    weights = np.where(present, average / np.where(present, counts, 1), 1.0)
    return np.where(present, weights.clip(*LIMITS), 1.0).tolist()


def weights_from_file(path: str, classes: Sequence[str]) -> list[float]:
    """Return the weights of a file with a name and a weight for each class; a class that it leaves out has the weight 1.

    CSV: lines of name,weight, with or without a header. JSON: {name: weight}. Raises ValueError, also for names that are no classes.
    """
    if not Path(path).is_file():
        raise ValueError(f"--class-weights is {path}; expected {BALANCED} or the path of a CSV or JSON file. Give one of them.")
    try:
        entries = [(str(name).strip(), float(weight)) for name, weight in _entries(Path(path))]
    except (ValueError, TypeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--class-weights is {path}, which cannot be read ({reason}); expected names and numbers.") from error
    if unknown := [name for name, _ in entries if name not in classes]:
        advice = near_names(unknown[0], classes) or f"The classes are {first_three(classes)}."
        raise ValueError(f"--class-weights is {path}, which names {unknown[0]!r}; expected classes of the data. {advice}")
    if repeated := [name for name, times in Counter(name for name, _ in entries).items() if times > 1]:
        raise ValueError(f"--class-weights is {path}, which names {repeated[0]!r} more than once. Keep one of the weights.")
    if wrong := [entry for entry in entries if not (math.isfinite(entry[1]) and entry[1] >= 0)]:
        raise ValueError(f"--class-weights is {path}, where the weight of {wrong[0][0]!r} is {wrong[0][1]}; expected at least 0.")
    given = dict(entries)
    weights = [given.get(name, 1.0) for name in classes]
    if not any(weights):
        raise ValueError(f"--class-weights is {path}, where all weights are 0; expected one above 0. Correct the file.")
    return weights


def _entries(path: Path) -> list[tuple]:
    """Return the pairs of a file as they are written."""
    text = read_text(path)
    if path.suffix.lower() == ".json":
        content = json.loads(text, object_pairs_hook=list)  # a list, since a dict would hide repeated names
        if not isinstance(content, list):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    rows = [row for row in csv.reader(text.splitlines()) if row]
    return rows[1:] if rows and [word.strip().lower() for word in rows[0]] == HEADER else rows


def weights_in_words(weights: Sequence[float], classes: Sequence[str]) -> str:
    """Return the weights with the names of their classes."""
    return ", ".join(f"{name} {weight:.3g}" for name, weight in zip(classes, weights))

"""Mean IoU of a model over a data set, on one process or many."""

from __future__ import annotations

import difflib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..config import InferenceConfig
from .inference import predict_ids
from .metrics import MeanIoU, mean_of_present

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data import Sample, SegmentationData

IGNORE = 255


def evaluate_model(
    model: nn.Module,
    data: SegmentationData,
    accelerator: Accelerator,
    options: InferenceConfig | None = None,
    *,
    seed: int | None = None,
    config: dict | None = None,
    score_classes: list[str] | None = None,
    pictures_dir: str | Path | None = None,
    num_pictures: int = 8,
    by_evaluate: str | None = None,
) -> dict:
    """Mean IoU (0 to 1) and its parts over all labelled images, the same on any number of processes.

    Process r takes the images r, r + world, …; integer counts are summed: no image is repeated or lost.
    options: base_size None = that of model.config, else the images' own; the result records it.
    The images are normalized with image_mean and image_std of model.config. seed, config: copied into the result for the record.
    score_classes: class names that the means are taken over; predictions of the others stay errors.
    pictures_dir: folder for predictions.png, see `draw_predictions`.
    by_evaluate: what `evaluate.load` opens ("mean_iou" from the Hub, or a folder); its figure over all classes is recorded beside ours.
    Returns a dict that JSON can hold; absent classes (neither predicted nor labelled), and means over absent classes alone, are None in
    it. classes_scored: how many of num_classes classes mean_iou is over.
    """
    network = accelerator.unwrap_model(model).to(accelerator.device)
    options = _with_size(options, network)
    _check_classes(network, data)
    scored = _scored_indices(data.classes, score_classes)
    second = None if by_evaluate is None else load_metric(by_evaluate, accelerator.num_processes)
    started = time.perf_counter()
    with _evaluating(network):
        metric = _count_everywhere(_Predictor(network, accelerator, options), data, accelerator, second)
    if pictures_dir is not None and accelerator.is_main_process:
        try:
            draw_predictions(network, data, accelerator, Path(pictures_dir), options, num_pictures)
        except Exception:  # what was counted, for hours perhaps, is not lost for a picture
            logging.getLogger(__name__).exception("predictions.png is not drawn; the figures are whole")
    results = _results(metric, data.classes, scored)
    if second is not None:
        computed = second.compute(num_labels=data.num_classes, ignore_index=IGNORE)
        results["mean_iou_by_evaluate"] = _number(computed["mean_iou"])
    return results | {
        "score_classes": score_classes,
        "dataset": data.name,
        "split": data.split,
        "num_images": len(data),
        "inference": asdict(options),
        "precision": accelerator.mixed_precision,
        "seconds": round(time.perf_counter() - started, 3),
        "seed": seed,
        "config": config,
    }


def draw_predictions(
    model: nn.Module,
    data: SegmentationData,
    accelerator: Accelerator,
    folder: Path,
    options: InferenceConfig | None = None,
    count: int = 8,
) -> None:
    """Write predictions.png into `folder`: image, truth, prediction and errors of `count` images, spread evenly over the data.

    The other arguments are those of `evaluate_model`.
    """
    from ..data.pixels import displayed
    from ..visual.figures import prediction_sheet

    network = accelerator.unwrap_model(model).to(accelerator.device)
    picks = sorted({round(i) for i in np.linspace(0, len(data) - 1, min(count, len(data)))})
    with _evaluating(network):
        predict = _Predictor(network, accelerator, _with_size(options, network))
        rows = [(displayed(sample.image), sample.mask, predict(sample), sample.name) for sample in map(data.read, picks)]
    folder.mkdir(parents=True, exist_ok=True)
    prediction_sheet(rows, data.classes, folder / "predictions.png")


def in_sentences(results: dict) -> list[str]:
    """The mean IoU that `evaluate_model` returned, over how many classes it is, and what lowers it."""
    mean, split, scored = results["mean_iou"], results["split"], results["classes_scored"]
    if mean is None:
        return [f"mean IoU on {split}: undefined, since no pixel is labelled"]
    sentences = [f"mean IoU on {split}: {mean:.4f} (over {scored} of {results['num_classes']} classes)"]
    if never := results["never_labelled_classes"]:
        sentences.append(f"predicted in {split} but never labelled there, each with IoU 0: {', '.join(never)}")
    return sentences


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode of before."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _with_size(options: InferenceConfig | None, network: nn.Module) -> InferenceConfig:
    """The options, with the size that the model was trained at where they give none."""
    options = options or InferenceConfig()
    return options if options.base_size is not None else replace(options, base_size=getattr(network.config, "base_size", 0))


class _Predictor:
    """Sample -> class ids (H, W) of its image."""

    def __init__(self, network: nn.Module, accelerator: Accelerator, options: InferenceConfig):
        self.network, self.accelerator, self.options = network, accelerator, options
        moments = [network.config.image_mean, network.config.image_std]
        moments = torch.tensor(moments, dtype=torch.float32, device=accelerator.device)
        self.mean, self.std = moments.view(2, 1, 3, 1, 1)

    def __call__(self, sample: Sample) -> np.ndarray:
        pixels = torch.from_numpy(np.array(sample.image)).to(self.accelerator.device)
        image = (pixels.permute(2, 0, 1)[None].float() / 255 - self.mean) / self.std
        size = sample.image.shape[:2] if sample.mask is None else sample.mask.shape
        with self.accelerator.autocast():
            return predict_ids(self.network, image, size, self.options).cpu().numpy()


def load_metric(name: str, processes: int = 1):
    """A module of the library `evaluate`; it cannot add up what several processes count."""
    if processes > 1:
        raise ValueError(f"the evaluate module {name!r} runs in one process, not in {processes}; leave it out")
    entries = sys.path[:]
    # The folder of a script that runs leads sys.path, and recipes/evaluate.py there would be taken for the library.
    sys.path[:] = [entry for entry in entries if not (Path(entry) / "evaluate.py").is_file()]
    try:
        import evaluate
    finally:
        sys.path[:] = entries
    return evaluate.load(name)


def _count_everywhere(predict: _Predictor, data: SegmentationData, accelerator: Accelerator, second=None) -> MeanIoU:
    """The metric over all images, the same on every process; `second`, an `evaluate` module, is fed beside it."""
    metric, seen, failure = MeanIoU(data.num_classes, IGNORE), 0, None
    mine = range(accelerator.process_index, len(data), accelerator.num_processes)
    try:
        for index in tqdm(mine, desc=f"evaluate {data.split}", disable=not accelerator.is_main_process):
            sample = data.read(index)
            prediction = predict(sample)
            metric.add(metric.counts(prediction, sample.mask))
            if second is not None:
                second.add(prediction=prediction, reference=sample.mask)
            seen += 1
    except Exception as error:  # the other processes wait in reduce(): meet them there first, raise after
        failure = error
    state = np.append(metric.total.ravel(), [seen, failure is not None])
    state = accelerator.reduce(torch.from_numpy(state).to(accelerator.device), "sum").cpu().numpy()
    if failure is not None:
        raise failure
    if state[-1]:
        raise OSError("evaluation failed on another process; see the message there")
    if state[-2] != len(data):
        raise RuntimeError(f"Counted {state[-2]} images, not {len(data)}; give all processes one data set.")
    metric.total = state[:-2].reshape(metric.total.shape)
    return metric


def _results(metric: MeanIoU, classes: Sequence[str], scored: list[int]) -> dict:
    numbers = metric.compute()
    _, predicted, labelled = metric.total
    iou, accuracy = numbers["per_category_iou"], numbers["per_category_accuracy"]
    if np.isnan(iou[scored]).all() and labelled.any():
        raise ValueError(f"None of the classes to score, {', '.join(classes[i] for i in scored)}, occurs in the data; choose others.")
    return {
        "mean_iou": _number(mean_of_present(iou, scored)),
        "classes_scored": int((~np.isnan(iou[scored])).sum()),
        "num_classes": len(classes),
        "mean_accuracy": _number(mean_of_present(accuracy, scored)),
        "overall_accuracy": _number(numbers["overall_accuracy"]),
        "mean_iou_all_classes": _number(numbers["mean_iou"]),
        "per_class_iou": {name: _number(value) for name, value in zip(classes, iou)},
        "per_class_accuracy": {name: _number(value) for name, value in zip(classes, accuracy)},
        "absent_classes": [n for n, p, t in zip(classes, predicted, labelled) if not p and not t],
        "never_labelled_classes": [n for n, p, t in zip(classes, predicted, labelled) if p and not t],
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _check_classes(network: nn.Module, data: SegmentationData) -> None:
    """The model's classes must be the data's, in the same order: a score of anything else means nothing."""
    if not data.classes or not len(data):
        what = f"{len(data)} images and {len(data.classes)} classes"
        raise ValueError(f"{data.name} ({data.split}) has {what}; evaluation needs labelled images.")
    count = network.config.num_labels
    if count != data.num_classes:
        raise ValueError(
            f"The model has {count} classes but {data.name} has {data.num_classes}; "
            "evaluate on the data set that the model was fine-tuned on."
        )
    names = [network.config.id2label[i] for i in range(count)]
    for i, (name, wanted) in enumerate(zip(names, data.classes)):
        if name != wanted:
            raise ValueError(
                f"Class {i} is {name!r} in the model but {wanted!r} in {data.name}; "
                "evaluate on data whose classes have the same names in the same order."
            )


def _scored_indices(classes: Sequence[str], chosen: list[str] | None) -> list[int]:
    if chosen is None:
        return list(range(len(classes)))
    for name in chosen:
        if name not in classes:
            near = difflib.get_close_matches(name, classes) or list(classes)
            raise ValueError(f"score_classes has {name!r}, which is no class of the data; use one of {near}.")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"score_classes={chosen} must name one or more classes, each once.")
    return [classes.index(name) for name in chosen]

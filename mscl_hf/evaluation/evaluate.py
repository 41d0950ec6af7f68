"""Mean IoU of a model over a data set, on one process or many."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ..config import InferenceConfig
from ..data.dataset import Sample, SegmentationData
from ..data.pixels import displayed, resized
from ..losses.labels import IGNORE_INDEX
from ..messages import near_names
from ..progress_bar import progress_bar
from ..visual.figures import prediction_sheet
from .batches import LARGE, in_threads, of_one_size
from .metrics import MeanIoU, mean_of_present
from .prediction import Predictor
from .report import draw_confusion

PIXELS_AT_ONCE = 2**22  # that are counted at once, at 25 bytes each
LONGEST_SIDE = 1200  # px, of an image in predictions.png


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
    """Return the mean IoU in [0, 1] over all labelled images, and its parts; the same on any number of processes, up to rounding.

    Process r of n predicts the images r, r + n, ...; the integer counts of all processes are summed, so that each image counts once.
    Images are normalized by image_mean and image_std of model.config; ValueError where it lacks them.

    options: where base_size is None, that of model.config is used, else the size of the images; the result records it.
    seed, config: copied into the result.
    score_classes: names of the classes that the means are taken over; a prediction of another class remains an error.
    pictures_dir: folder for predictions.png, see `draw_predictions`, and confusion.png.
    by_evaluate: argument of `evaluate.load`, such as "mean_iou"; the mean IoU of this metric is recorded too. One process only.
    Returns a dict that JSON can hold. Absent classes (neither predicted nor labelled), and means over absent classes alone, are None.
    classes_scored is how many of the num_classes classes mean_iou is the mean of. confusion has the pixels by the names of the true and
    the predicted class, without zeros.
    """
    network = accelerator.unwrap_model(model).to(accelerator.device)
    options = with_size_of(network, options)
    check_classes(network, data)
    scored = scored_indices(data.classes, score_classes)
    if by_evaluate is not None and accelerator.num_processes > 1:
        raise ValueError(f"--by-evaluate is {by_evaluate} on {accelerator.num_processes} processes; expected 1 process. Leave it out.")
    other = None if by_evaluate is None else evaluate.load(by_evaluate)
    started = time.perf_counter()
    with evaluating(network):
        counts = _count_everywhere(Predictor.of_network(network, accelerator, options), data, accelerator, other)
    results = _results(_areas(counts), data.classes, scored) | {"confusion": _by_name(counts, data.classes)}
    if pictures_dir is not None and accelerator.is_main_process:
        folder = Path(pictures_dir)
        with _logged_failure("predictions.png"):
            draw_predictions(network, data, accelerator, folder, options, num_pictures)
        with _logged_failure("confusion.png"):
            draw_confusion(results, folder)
    if other is not None:
        computed = other.compute(num_labels=data.num_classes, ignore_index=IGNORE_INDEX)
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


@contextmanager
def _logged_failure(picture: str) -> Iterator[None]:
    """Log an error in the context: the counts may have taken hours, and a picture must not lose them."""
    try:
        yield
    except Exception:
        logging.getLogger(__name__).exception("%s could not be drawn; the scores are complete", picture)


def draw_predictions(
    model: nn.Module,
    data: SegmentationData,
    accelerator: Accelerator,
    folder: Path,
    options: InferenceConfig | None = None,
    count: int = 8,
) -> None:
    """Write predictions.png: image, true mask, prediction and errors of `count` images, evenly spaced in the data.

    The other arguments are those of `evaluate_model`.
    """
    indices = sorted({round(i) for i in np.linspace(0, len(data) - 1, min(count, len(data)))})
    rows = []
    for sample in map(data.read, indices):  # one at a time: images may be huge
        (ids,) = predict_masks(model, [sample], accelerator, options)
        rows.append((*_for_picture(displayed(sample.image), sample.mask, ids), sample.name))
    folder.mkdir(parents=True, exist_ok=True)
    prediction_sheet(rows, data.classes, folder / "predictions.png")


def _for_picture(image: np.ndarray, *masks: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
    """Return image and masks reduced to at most LONGEST_SIDE px; the picture shows less, and drawing takes 100 bytes a pixel."""
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image, *masks
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    ids = (None if mask is None else resized(mask.astype(np.uint8), size, Image.Resampling.NEAREST) for mask in masks)
    return resized(image, size, Image.Resampling.BILINEAR), *ids


def predict_masks(
    model: nn.Module, samples: Sequence[Sample], accelerator: Accelerator, options: InferenceConfig | None = None
) -> list[np.ndarray]:
    """Return the predicted class ids (H, W) of each sample, of the size of its mask, or of its image where it has no mask.

    The other arguments are those of `evaluate_model`.
    """
    network = accelerator.unwrap_model(model).to(accelerator.device)
    with evaluating(network):
        predictor = Predictor.of_network(network, accelerator, with_size_of(network, options))
        return [predictor.ids([sample.image], _size_of_ids(sample))[0].cpu().numpy() for sample in samples]


def in_sentences(results: dict) -> list[str]:
    """Return sentences with the mean IoU of `evaluate_model`, its number of classes, and the classes that lower it."""
    mean, split, scored = results["mean_iou"], results["split"], results["classes_scored"]
    if mean is None:
        return [f"mean IoU on {split}: undefined, because no pixel is labelled"]
    sentences = [f"mean IoU on {split}: {mean:.4f} (over {scored} of {results['num_classes']} classes)"]
    if never := results["never_labelled_classes"]:
        sentences.append(f"classes that are predicted in {split} but never labelled, with IoU 0 each: {', '.join(never)}")
    return sentences


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Set evaluation mode; restore the previous mode at the end."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def with_size_of(network: nn.Module, options: InferenceConfig | None = None) -> InferenceConfig:
    """Return the options, with the model's base_size where theirs is None."""
    options = options or InferenceConfig()
    return options if options.base_size is not None else replace(options, base_size=getattr(network.config, "base_size", 0))


def _size_of_ids(sample: Sample) -> tuple[int, int]:
    """Return the size (H, W) of the ids of a sample: that of its mask, or of its image where it has no mask."""
    return sample.image.shape[:2] if sample.mask is None else sample.mask.shape


def _count_everywhere(
    predictor: Predictor, data: SegmentationData, accelerator: Accelerator, other: evaluate.EvaluationModule | None
) -> np.ndarray:
    """Predict this process's images; return the pixels by true and predicted class, (K, K) int64, of all processes.

    other: a metric that the predictions are added to.
    """
    counts, num_images, failure = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64, device=predictor.device), 0, None
    indices = range(accelerator.process_index, len(data), accelerator.num_processes)
    bar = progress_bar(total=len(indices), desc=f"evaluate {data.split}", disable=None if accelerator.is_main_process else True)
    samples = in_threads(data.read, indices, predictor.options.eval_threads, lambda sample: sample.image[..., 0].size > LARGE)

    def sizes_of(sample: Sample) -> tuple:
        return sample.image.shape[:2], _size_of_ids(sample)

    try:
        for group in of_one_size(samples, sizes_of, lambda sizes: predictor.at_once(*sizes)):
            predictions = predictor.ids([sample.image for sample in group], _size_of_ids(group[0]))
            for sample, ids in zip(group, predictions):
                counts += pixel_pairs(ids, torch.from_numpy(sample.mask).to(ids.device), data.num_classes)
                if other is not None:
                    other.add_batch(predictions=[ids.cpu().numpy()], references=[sample.mask])
            num_images += len(group)
            bar.update(len(group))
    except Exception as error:  # raised below: the other processes wait in reduce()
        failure = error
    finally:
        bar.close()
    state = torch.cat([counts.flatten(), counts.new_tensor([num_images, failure is not None])])
    state = accelerator.reduce(state, "sum").cpu().numpy()
    if failure is not None:
        raise failure
    if state[-1]:
        raise OSError("Evaluation failed on another process; see its error message.")
    if state[-2] != len(data):
        raise RuntimeError(f"Counted {state[-2]} images; expected {len(data)}. All processes must have the same data set.")
    return state[:-2].reshape(counts.shape)


def pixel_pairs(ids: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Return the pixels by true and predicted class, (K, K) int64, of class ids and a mask (H, W) in which 255 is ignored."""
    counts = torch.zeros(num_classes**2, dtype=torch.int64, device=ids.device)
    for some_ids, some_labels in zip(ids.flatten().split(PIXELS_AT_ONCE), mask.flatten().split(PIXELS_AT_ONCE)):
        codes = some_labels.long() * num_classes + some_ids
        counts += torch.bincount(codes[some_labels != IGNORE_INDEX], minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def _areas(counts: np.ndarray) -> np.ndarray:
    """Return intersection, predicted and labelled pixels of each class, (3, K), of the pixels by true and predicted class (K, K)."""
    return np.stack([counts.diagonal(), counts.sum(0), counts.sum(1)])


def _results(areas: np.ndarray, classes: Sequence[str], scored: list[int]) -> dict:
    scores, (_, predicted, labelled) = MeanIoU.scores(areas), areas
    iou, accuracy = scores["per_category_iou"], scores["per_category_accuracy"]
    if np.isnan(iou[scored]).all() and labelled.any():
        names = ", ".join(classes[i] for i in scored)
        raise ValueError(f"--score-classes is {names}; expected a class that occurs in the data. Choose other classes.")
    return {
        "mean_iou": _number(mean_of_present(iou[scored])),
        "classes_scored": int((~np.isnan(iou[scored])).sum()),
        "num_classes": len(classes),
        "mean_accuracy": _number(mean_of_present(accuracy[scored])),
        "overall_accuracy": _number(scores["overall_accuracy"]),
        "mean_iou_all_classes": _number(scores["mean_iou"]),
        "per_class_iou": {name: _number(value) for name, value in zip(classes, iou)},
        "per_class_accuracy": {name: _number(value) for name, value in zip(classes, accuracy)},
        "per_class_pixels": {name: int(pixels) for name, pixels in zip(classes, labelled)},
        "absent_classes": [name for name, p, t in zip(classes, predicted, labelled) if not p and not t],
        "never_labelled_classes": [name for name, p, t in zip(classes, predicted, labelled) if p and not t],
    }


def _by_name(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return {true class: {predicted class: pixels}} without zeros."""
    rows = {name: {classes[i]: int(row[i]) for i in row.nonzero()[0]} for name, row in zip(classes, confusion)}
    return {name: row for name, row in rows.items() if row}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def check_classes(network: nn.Module, data: SegmentationData, name: str = "the model") -> None:
    """Raise ValueError unless model and data have the same classes in the same order. name: of the model, in the message."""
    if not data.classes or not len(data):
        counts = f"{len(data)} images and {len(data.classes)} classes"
        raise ValueError(f"{data.name}/{data.split} has {counts}; expected labelled images. Choose another split.")
    names = [network.config.id2label[i] for i in range(network.config.num_labels)]
    if len(names) != data.num_classes:
        raise ValueError(
            f"{name} has {len(names)} classes; expected the {data.num_classes} classes of {data.name}. "
            "Give the data set that the model was fine-tuned on, or another model."
        )
    for i, (class_name, expected) in enumerate(zip(names, data.classes)):
        if class_name != expected:
            raise ValueError(
                f"Class {i} of {name} is {class_name!r}; expected {expected!r}, as in {data.name}. "
                "Evaluate on data whose classes have the same names in the same order."
            )


def scored_indices(classes: Sequence[str], score_classes: list[str] | None) -> list[int]:
    """Return the indices of --score-classes among the classes of the model; all where it is None. Raises ValueError."""
    if score_classes is None:
        return list(range(len(classes)))
    for name in score_classes:
        if name not in classes:
            advice = near_names(name, classes) or f"Choose from {', '.join(classes)}."
            raise ValueError(f"--score-classes has {name!r}; expected classes of the model. {advice}")
    if not score_classes or len(set(score_classes)) != len(score_classes):
        raise ValueError(f"--score-classes is {score_classes}; expected one or more classes, each once.")
    return [classes.index(name) for name in score_classes]

"""The model card: README.md of a model folder, written from its provenance and the template hub/model_card.md."""

import hashlib
import html
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from ..models.checks_mscl import read_json
from ..models.configuration_mscl import HEADS
from ..models.loading import split_revision
from ..records.files import hub_folder, write_json
from ..records.versions import package_versions
from .provenance import METRICS, OPTIONAL, PROVENANCE
from .upload import NAME_PLACEHOLDER, PROCESSOR, links_outside, updated_processor

DIGEST = ".card.sha256"  # file with the SHA-256 of the card as it was written
PICTURES = ("predictions.png", "confusion.png", "training.png", "classes.png", "features.png")
METRIC_NAMES = dict(zip(METRICS, ("mean IoU", "mean accuracy", "pixel accuracy")))


def write_card(out: Path, network: PreTrainedModel, record: dict, log: Callable[[str], None] = print) -> None:
    """Write provenance.json and README.md into a model folder. A README.md that was edited by hand is kept.

    record: as returned by `read_provenance`, with the title, stage or evaluation of this run.
    """
    readme, digest = out / "README.md", out / DIGEST
    if readme.is_file() and digest.is_file() and digest.read_text() != _digest(readme):
        log(f"{readme} was edited by hand and is kept; remove it to have it written anew")
    else:
        readme.write_text(str(model_card(out, network, record)), encoding="utf-8")
        digest.write_text(_digest(readme))
    write_json(out / PROVENANCE, record)


def model_card(out: Path, network: PreTrainedModel, record: dict) -> ModelCard:
    """Return the card of the model in `out`; its name is NAME_PLACEHOLDER, which a push replaces."""
    config, segments = network.config, hasattr(network, "classifier")
    stages, evaluations = record["stages"], record["evaluations"]
    title = record["title"] or config.backbone
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation" if segments else None,
        tags=["mscl_hf", "timm", "semantic-segmentation" if segments else "self-supervised"],
        license=record["license"],
        datasets=sorted({stage["data_set"] for stage in stages} - {None}) or None,
        base_model=next((stage["base_model"] for stage in reversed(stages) if stage["base_model"]), None),
        model_name=title if evaluations else None,
        eval_results=[result for evaluation in evaluations for result in _eval_results(evaluation)] or None,
    )
    classes = [config.id2label[i] for i in range(config.num_labels)] if segments else []
    versions = stages[-1]["versions"] if stages else package_versions()
    return ModelCard.from_template(
        data, template_path=str(hub_folder() / "model_card.md"), title=cell(title), description=_description(classes),
        name=NAME_PLACEHOLDER, segments=segments, network=_network_facts(network), stages=[_shown_stage(stage) for stage in stages],
        evaluations=[_shown_evaluation(evaluation) for evaluation in evaluations],
        pictures=[name for name in PICTURES if (out / name).is_file()],
        versions=cell(", ".join(f"{package} {number}" for package, number in versions.items())) + ".",
        license_text=license_text(record["license"]), image_range=config.image_range, bands=config.bands,
        shape=_processor_size(out) if segments else None,
        limits=_limits(config, classes, stages, evaluations),
    )  # fmt: skip


def method_facts(contrast: dict[str, Any]) -> dict[str, str]:
    """Return the losses and the options of a pre-training method in words. contrast: of the network's configuration."""
    options = {name: value for name, value in contrast.items() if name != "method"}
    terms = [(term, options.pop(f"{term}_weight")) for term in options.pop("losses", "").split("+") if term]
    losses = {"losses": " + ".join(f"{weight:g} x {term}" for term, weight in terms)} if terms else {}
    unused = [f"{term}_{name}" for name in ("weight", "temperature") for term in HEADS if terms and term not in dict(terms)]
    return losses | {"options": describe_options({name: value for name, value in options.items() if name not in unused})}


def describe_options(options: dict[str, Any]) -> str:
    """Return the options that are set in words: "queue_size 64, pixel_temperature 0.1"; "-" for none."""
    values = {name: value for name, value in options.items() if value not in (None, [], "")}
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()) or "-"


def copy_pictures_and_processor(model: str, out: Path, log: Callable[[str], None] = print) -> None:
    """Copy the pictures of training and the image processor of a model into `out`, for a copy that is published with new scores.

    model: a folder, a Hub name or NAME@REVISION. Links to files outside its folder are not copied, which is logged.
    """
    folder, revision = split_revision(model)
    for name in ("training.png", "features.png", PROCESSOR):
        file = cached_file(folder, name, revision=revision, **OPTIONAL)
        if file and links_outside(Path(file)):
            log(f"{name} of {model} is a link to a file outside the folder and is not published; replace it by the file itself")
        elif file and name == PROCESSOR:
            (out / name).write_bytes(updated_processor(Path(file)))
        elif file:
            shutil.copyfile(file, out / name)


def cell(value: Any) -> str:
    """Return text for a table or a line of Markdown, with all markup escaped."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def license_text(license: str | None) -> str:
    """Return the terms of the weights, the code and the data. license: of the weights, as the Hub names it."""
    weights = f"Weights: {cell(license)}." if license else "No license was stated for the weights (`--license`)."
    return f"{weights} Code of the model: Apache-2.0. The terms of the training images apply as well."


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _processor_size(out: Path) -> tuple[int, int] | None:
    """Return the (height, width) [px] to which the image processor resizes all images; None where it keeps their aspect ratio."""
    file = out / PROCESSOR
    size = read_json(file).get("size") if file.is_file() else None
    height, width = (size.get(side) if isinstance(size, dict) else None for side in ("height", "width"))
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _description(classes: list[str]) -> str:
    if not classes:
        return "A backbone and a decoder with contrastive pre-training, to be fine-tuned on masks. It has no classifier yet."
    names = ", ".join(map(cell, classes[:40])) + (", ..." if len(classes) > 40 else "")
    return f"A semantic segmentation network for {len(classes)} classes: {names}."


def _network_facts(network: PreTrainedModel) -> dict[str, str]:
    config = network.config
    backbone = f"`{config.backbone}` (timm)" + ", two of half the width, for lightness and for color" * config.two_towers
    parameters = f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} million"
    return {"backbone": backbone, "decoder": f"{config.decoder_type}, {config.decoder_channels} channels", "parameters": parameters}


def _shown_stage(stage: dict) -> dict:
    facts = {cell(key): cell(value) for key, value in stage["facts"].items()}
    return {"stage": cell(stage["stage"]), "facts": facts, "command": stage["command"].replace("`", "'").replace("\n", " ")}


def _eval_results(evaluation: dict) -> list[EvalResult]:
    """Return the scores in the format that the Hub shows on the page of a model."""
    names = {"dataset_type": evaluation["dataset"], "dataset_name": evaluation["dataset"], "dataset_split": evaluation["split"]}
    return [
        EvalResult(task_type="image-segmentation", task_name="semantic segmentation", metric_type=key, metric_name=name,
                   metric_value=round(evaluation[key], 4), **names)
        for key, name in METRIC_NAMES.items() if evaluation[key] is not None
    ]  # fmt: skip


def _shown_evaluation(evaluation: dict) -> dict:
    """Return an evaluation as texts, with its scores in percent."""
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    inference = evaluation["inference"]
    protocol = ["whole image" if inference["mode"] == "whole" else f"windows of {inference['window']} px"]
    protocol += [f"short side {inference['base_size']} px" if inference["base_size"] else "original size"]
    protocol += ["also mirrored"] * inference["flip"] + [f"scales {inference['scales']}"] * (inference["scales"] != [1.0])
    if evaluation["score_classes"]:
        protocol.append(f"means over {', '.join(evaluation['score_classes'])} only")
    protocol.append(evaluation["precision"].replace("no", "fp32"))
    rows = [
        {"name": cell(name), "iou": percent(iou), "accuracy": percent(evaluation["per_class_accuracy"][name])}
        for name, iou in evaluation["per_class_iou"].items()
    ]
    texts = {key: cell(evaluation[key]) for key in ("dataset", "split", "num_images")}
    counts = [evaluation.get(key) for key in ("classes_scored", "num_classes")]  # missing in older records
    texts["over"] = "" if None in counts else f" over {cell(counts[0])} of {cell(counts[1])} classes"
    return texts | {key: percent(evaluation[key]) for key in METRICS} | {"protocol": cell(", ".join(protocol)), "classes": rows}


def _limits(config: PreTrainedConfig, classes: list[str], stages: list[dict], evaluations: list[dict]) -> list[str]:
    """Return sentences on what the model was not trained or measured on, with the warnings of its runs."""
    data_sets = dict.fromkeys(cell(stage["facts"]["data"]).replace(", ", " (") + ")" for stage in stages if "data" in stage["facts"])
    data = " and ".join(data_sets) or ("no images" if stages else "unknown images")
    limits = [f"Trained on {data} only; not tested on other cameras, places and classes."]
    if config.image_range is None:
        clipped = "" if config.bands else ": transformers clips the values of 16-bit files at 255"
        limits.append(f"Trained on 8-bit images. Scale others to 8 bits first{clipped}.")
    warnings = dict.fromkeys(warning for record in (*stages, *evaluations) for warning in record.get("warnings", ()))
    limits += [f"{cell(warning[:1].upper() + warning[1:])}." for warning in warnings]
    if not classes:
        return [*limits, "It has no classifier, so it does not segment before it is fine-tuned."]
    limits.append(f"Every pixel gets one of the {len(classes)} classes, also where it shows something else; the scores are not calibrated.")
    if config.base_size:
        limits.append(f"Images are scaled to {config.base_size} px on the short side; small objects may be missed.")
    if not evaluations:
        limits.append("Its accuracy was not measured.")
    elif absent := [cell(name) for name, iou in evaluations[-1]["per_class_iou"].items() if iou is None]:
        limits.append(f"Not measured, because they do not occur in the last evaluation: {', '.join(absent)}.")
    return limits

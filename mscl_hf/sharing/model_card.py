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
from ..records.files import write_json
from ..records.versions import package_versions
from .model_folder import hub_folder
from .provenance import FILE, MEASURED, SILENT
from .upload import PROCESSOR, UNNAMED, leads_away, updated_processor

WRITTEN = ".card.sha256"  # of the card as it was written
PICTURES = ("predictions.png", "training.png", "features.png")
MEASURES = dict(zip(MEASURED, ("mean IoU", "mean accuracy", "pixel accuracy")))


def write_card(out: Path, network: PreTrainedModel, record: dict, log: Callable[[str], None] = print) -> None:
    """provenance.json and README.md into the model's folder, whose pictures it shows.

    record: as `provenance` returns it, with this run's title, stage or evaluation. A README.md that somebody has edited since it was
    written stays as it is. In place of the model's name stands UNNAMED, which a push replaces.
    """
    readme, written = out / "README.md", out / WRITTEN
    if readme.is_file() and written.is_file() and written.read_text() != _digest(readme):
        log(f"{readme} was edited by hand and stays as it is; remove it to have it written anew")
    else:
        readme.write_text(str(model_card(out, network, record)), encoding="utf-8")
        written.write_text(_digest(readme))
    write_json(out / FILE, record)


def model_card(out: Path, network: PreTrainedModel, record: dict) -> ModelCard:
    """The card of a model in `out`."""
    config, segments = network.config, hasattr(network, "classifier")
    stages, evaluations, licence = record["stages"], record["evaluations"], record["license"]
    title = record["title"] or config.backbone
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation" if segments else None,
        tags=["mscl_hf", "timm", "semantic-segmentation" if segments else "self-supervised"],
        license=licence,
        datasets=sorted({stage["data_set"] for stage in stages} - {None}) or None,
        base_model=next((stage["base_model"] for stage in reversed(stages) if stage["base_model"]), None),
        model_name=title if evaluations else None,
        eval_results=[result for found in evaluations for result in _eval_results(found)] or None,
    )
    classes = [config.id2label[i] for i in range(config.num_labels)] if segments else []
    return ModelCard.from_template(
        data, template_path=str(hub_folder() / "model_card.md"), title=cell(title), description=_description(classes), name=UNNAMED,
        segments=segments, network=_network(config, network), stages=[_shown_stage(stage) for stage in stages],
        evaluations=[_shown(found) for found in evaluations], pictures=[name for name in PICTURES if (out / name).is_file()],
        versions=_listed((stages[-1] if stages else {"versions": package_versions()})["versions"]),
        licence=licence_text(licence), image_range=config.image_range, shape=_shape(out) if segments else None,
        limits=_limits(config, classes, stages, evaluations),
    )  # fmt: skip


def _shape(out: Path) -> tuple[int, int] | None:
    """Height and width in px that the model's image processor brings every image to; None where it keeps their shape."""
    file = out / "preprocessor_config.json"
    size = read_json(file).get("size") if file.is_file() else None
    height, width = (size.get(side) if isinstance(size, dict) else None for side in ("height", "width"))
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def method_facts(contrast: dict[str, Any]) -> dict[str, str]:
    """A pre-training method's losses and options, from `config.contrast`."""
    options = {name: value for name, value in contrast.items() if name != "method"}
    terms = [(term, options.pop(f"{term}_weight")) for term in options.pop("losses", "").split("+") if term]
    losses = {"losses": " + ".join(f"{weight:g} x {term}" for term, weight in terms)} if terms else {}
    unused = [f"{term}_{name}" for name in ("weight", "temperature") for term in HEADS if terms and term not in dict(terms)]
    return losses | {"options": in_words({name: value for name, value in options.items() if name not in unused})}


def in_words(options: dict[str, Any]) -> str:
    """Options as a card shows them, those that were given: "queue 64, pixel_temperature 0.1"."""
    given = {name: value for name, value in options.items() if value not in (None, [], "")}
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in given.items()) or "-"


def copy_beside(model: str, out: Path, log: Callable[[str], None] = print) -> None:
    """What a model has beside its weights, from its folder or the Hub, for a copy that was measured anew; links to elsewhere stay behind,
    which is said."""
    place, revision = split_revision(model)
    for name in ("training.png", "features.png", PROCESSOR):
        file = cached_file(place, name, revision=revision, **SILENT)
        if file and leads_away(Path(file)):
            log(f"{name} of {model} is a link to a file elsewhere, and is not published; put the file itself there")
        elif file and name == PROCESSOR:
            (out / name).write_bytes(updated_processor(Path(file)))
        elif file:
            shutil.copyfile(file, out / name)


def cell(value: Any) -> str:
    """Text for a table or a line of Markdown: nothing in it is taken for markup."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _listed(numbers: dict[str, str]) -> str:
    return cell(", ".join(f"{package} {number}" for package, number in numbers.items())) + "."


def _description(classes: list[str]) -> str:
    if not classes:
        return "A backbone and a decoder, pre-trained by contrast, to be fine-tuned on masks. It has no classifier yet."
    names = ", ".join(map(cell, classes[:40])) + (", ..." if len(classes) > 40 else "")
    return f"A semantic segmentation network for {len(classes)} classes: {names}."


def _network(config: PreTrainedConfig, network: PreTrainedModel) -> dict[str, str]:
    backbone = f"`{config.backbone}` (timm)" + ", two of half the width, on lightness and on colour" * config.two_towers
    weights = f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} million"
    return {"backbone": backbone, "decoder": f"{config.decoder_type}, {config.decoder_channels} channels", "weights": weights}


def _shown_stage(stage: dict) -> dict:
    facts = {cell(key): cell(value) for key, value in stage["facts"].items()}
    return {"stage": cell(stage["stage"]), "facts": facts, "command": stage["command"].replace("`", "'").replace("\n", " ")}


def _eval_results(found: dict) -> list[EvalResult]:
    """In the Hub's format, which the page of the model shows."""
    where = {"dataset_type": found["dataset"], "dataset_name": found["dataset"], "dataset_split": found["split"]}
    return [
        EvalResult(task_type="image-segmentation", task_name="semantic segmentation", metric_type=key, metric_name=name,
                   metric_value=round(found[key], 4), **where)
        for key, name in MEASURES.items() if found[key] is not None
    ]  # fmt: skip


def _shown(found: dict) -> dict:
    """An evaluation as the card shows it, in %."""
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    chosen = found["inference"]
    how = ["whole image" if chosen["mode"] == "whole" else f"windows of {chosen['window']} px"]
    how += [f"short side {chosen['base_size']} px" if chosen["base_size"] else "native size"]
    how += ["mirrored too"] * chosen["flip"] + [f"scales {chosen['scales']}"] * (chosen["scales"] != [1.0])
    if found["score_classes"]:
        how.append(f"means over {', '.join(found['score_classes'])} only")
    rows = [
        {"name": cell(name), "iou": percent(iou), "accuracy": percent(found["per_class_accuracy"][name])}
        for name, iou in found["per_class_iou"].items()
    ]
    texts = {key: cell(found[key]) for key in ("dataset", "split", "num_images")}
    counts = [found.get(key) for key in ("classes_scored", "num_classes")]  # not in older records
    texts["over"] = "" if None in counts else f" over {cell(counts[0])} of {cell(counts[1])} classes"
    how = cell(", ".join([*how, found["precision"].replace("no", "fp32")]))
    return texts | {key: percent(found[key]) for key in MEASURES} | {"how": how, "classes": rows}


def licence_text(licence: str | None) -> str:
    """The terms of weights, code and data; licence: of the weights, as the Hub names it."""
    weights = f"Weights: {cell(licence)}." if licence else "Who published these weights has not stated a licence for them (`--license`)."
    return f"{weights} The code of the model: Apache-2.0. The terms of the training images apply beside both."


def _limits(config: PreTrainedConfig, classes: list[str], stages: list[dict], evaluations: list[dict]) -> list[str]:
    seen = dict.fromkeys(cell(stage["facts"]["data"]).replace(", ", " (") + ")" for stage in stages if "data" in stage["facts"])
    data = " and ".join(seen) or ("no images" if stages else "images that are not known")
    limits = [f"Trained on {data} only; other cameras, places and classes were not seen."]
    if config.image_range is None:
        limits.append("Trained on images of 8 bits; bring others to 8 bits first: transformers cuts the values of 16-bit files at 255.")
    warnings = dict.fromkeys(warning for of in (*stages, *evaluations) for warning in of.get("warnings", ()))
    limits += [f"{cell(warning[:1].upper() + warning[1:])}." for warning in warnings]
    if not classes:
        return [*limits, "Not a segmenter before it is fine-tuned: there is no classifier."]
    limits.append(f"Every pixel gets one of the {len(classes)} classes, whatever it shows; the scores are not calibrated.")
    if config.base_size:
        limits.append(f"Images are brought to {config.base_size} px on the short side; what is small there is missed.")
    if not evaluations:
        limits.append("Its accuracy was not measured.")
    elif absent := [cell(name) for name, iou in evaluations[-1]["per_class_iou"].items() if iou is None]:
        limits.append(f"Not measured, since they do not occur in the last evaluation: {', '.join(absent)}.")
    return limits

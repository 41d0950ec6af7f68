"""Where a model comes from: provenance.json, which travels with the weights, and the model card that is written from it."""

import json
import platform
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .checkpoint import write_json
from .data.loading import TrainingData
from .data.training import DataOptions
from .publish import commit, hub_folder
from .train import TrainOptions
from .upload import HubOptions

FILE = "provenance.json"
PICTURES = ("predictions.png", "training.png", "features.png")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "numpy")
SILENT = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
LOSSES = {"g": "global", "l": "local", "p": "pixel"}
NAME = "PATH_OR_HUB_NAME"  # stands in a card for a name that is not known yet


def provenance(model: str) -> dict:
    """What is known of a model, a folder or a Hub name: its stages and evaluations, oldest first; both empty for one of another origin."""
    file = cached_file(model, FILE, **SILENT)
    return {"stages": [], "evaluations": []} if file is None else json.loads(Path(file).read_text())


def stage_record(
    stage: str, what: dict[str, Any], data: TrainingData, options: DataOptions, train: TrainOptions, config: PreTrainedConfig,
    accelerator: Accelerator, start: str | None, trained: bool = True,
) -> dict:  # fmt: skip
    """One stage of training as its card tells it.

    what: method and loss, by the words of the card. start: the model that it went on from, None for a new network.
    trained: False for the controls, which leave the network as it starts.
    """
    source = data.stream or data.labelled or data.unlabelled
    batch = train.batch_size * train.gradient_accumulation_steps
    passes = f", {train.max_steps * batch / data.images:.3g} passes" if data.images else ""
    resized = f"images brought to {config.base_size} px on the short side" if config.base_size else "images at their own size"
    height, width = config.image_size, config.image_width or config.image_size
    facts = {
        "data": f"{source.name}, {source.split}",
        "images with labels": "a stream" if data.stream else len(data.labelled) if data.labelled else 0,
        "images without labels": len(data.unlabelled) if data.unlabelled else 0,
        "budget": f"{train.max_steps:,} steps of {batch} images{passes}",
        "crops": f"{height} x {width} px, {resized}",
        "optimizer": f"{train.optimizer}, peak learning rate {train.lr:g}, {train.schedule}, weight decay {train.weight_decay:g}",
        "precision": train.precision,
        "seed": train.seed,
        "machine": f"{accelerator.num_processes} x {_device(accelerator.device)}",
        "started from": "random weights" if start is None else public(start),
    }
    facts = facts if trained else {"budget": "no training", "seed": train.seed, "started from": facts["started from"]}
    return {
        "stage": stage,
        "facts": what | facts,
        "dataset": {"name": source.name, "hub": _hub_name(options)},
        "classes": list(source.classes),
        "base_model": None if start is None or Path(start).exists() else start,
        "command": public_command(sys.argv, accelerator.num_processes),
        "versions": versions(),
    }


def evaluation_record(results: dict) -> dict:
    """Of what `evaluate_model` returns, that which belongs on a card."""
    kept = ("dataset", "split", "num_images", "mean_iou", "mean_accuracy", "overall_accuracy", "per_class_iou", "per_class_accuracy",
            "score_classes", "inference", "precision")  # fmt: skip
    return {key: results[key] for key in kept}


def method_facts(contrast: dict[str, Any]) -> dict[str, str]:
    """A pre-training method's losses and options, from `config.contrast`."""
    options = {name: value for name, value in contrast.items() if name != "method"}
    terms = [(term, options.pop(f"lambda_{term}")) for term in options.pop("losses", "").split("+") if term]
    losses = {"losses": " + ".join(f"{weight:g} x {LOSSES[term]}" for term, weight in terms)} if terms else {}
    unused = [f"{kind}_{term}" for kind in ("lambda", "tau") for term in "glp" if terms and term not in dict(terms)]
    return losses | {"options": in_words({name: value for name, value in options.items() if name not in unused}) or "-"}


def in_words(options: dict[str, Any]) -> str:
    """Options as a card shows them, those that were given: "losses g+p, lambda_g 0.1"."""
    given = {name: value for name, value in options.items() if value not in (None, [], "")}
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in given.items())


def copy_pictures(model: str, out: Path) -> None:
    """Those of a model's training, from its folder or the Hub, for the card of a copy that was measured anew."""
    for name in ("training.png", "features.png"):
        if file := cached_file(model, name, **SILENT):
            shutil.copyfile(file, out / name)


def write_card(out: Path, network: PreTrainedModel, record: dict, title: str, hub: HubOptions) -> None:
    """provenance.json and README.md into the model's folder, whose pictures it shows.

    record: as `provenance` returns it, this run's stage or evaluation added. hub: the model's name there and its licence.
    """
    write_json(out / FILE, record)
    (out / "README.md").write_text(str(model_card(out, network, record, title, hub.push_to_hub, hub.license)))


def model_card(out: Path, network: PreTrainedModel, record: dict, title: str, name: str | None, licence: str | None) -> ModelCard:
    """The card of a model in `out`, from the template hub/model_card.md."""
    config, segments = network.config, hasattr(network, "classifier")
    stages, evaluations = record["stages"], record["evaluations"]
    last = stages[-1] if stages else {"versions": versions(), "classes": []}
    sources = {stage["dataset"]["hub"] for stage in stages} - {None}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation" if segments else "image-feature-extraction",
        tags=["mscl_hf", "timm", "semantic-segmentation" if segments else "self-supervised"],
        license=licence,
        datasets=sorted(sources) or None,
        base_model=next((stage["base_model"] for stage in reversed(stages) if stage["base_model"]), None),
        model_name=title if evaluations else None,
        eval_results=[result for found in evaluations for result in _eval_results(found)] or None,
    )
    classes = [config.id2label[i] for i in range(config.num_labels)] if segments else []
    return ModelCard.from_template(
        data, template_path=str(hub_folder() / "model_card.md"), title=title, description=_description(config, classes),
        name=name or NAME, segments=segments, network=_network(config, network), stages=stages,
        evaluations=[_shown(found) for found in evaluations], pictures=[p for p in PICTURES if (out / p).is_file()],
        versions=", ".join(f"{package} {number}" for package, number in last["versions"].items()) + ".",
        licence=_licence(licence), limits=_limits(config, classes, stages, evaluations),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of what computed: this package with its commit, Python, the libraries."""
    import mscl_hf

    own = f"{mscl_hf.__version__} ({commit()})" if commit() else mscl_hf.__version__
    return {"mscl_hf": own, "Python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def public(text: str) -> str:
    """A word of a command without the folders of the machine that it ran on."""
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    if value.startswith(("/", "~", "../")):
        value = Path(value).name
    return f"{flag}{equals}{value}"


def public_command(argv: list[str], processes: int = 1) -> str:
    """How to run a recipe again: what stands in sys.argv, fit to be published."""
    script = Path(argv[0])
    launched = ["accelerate", "launch", *(["--num_processes", str(processes)] if processes > 1 else [])]
    recipe = [*launched, f"recipes/{script.name}"] if script.suffix == ".py" else [script.name]
    return shlex.join([*recipe, *map(public, argv[1:])])


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _hub_name(options: DataOptions) -> str | None:
    """The data set's name on the Hub, where it is from there."""
    name = options.data_dir or ""
    return name if options.dataset == "hf" and name.count("/") <= 1 and not Path(name).exists() else None


def _description(config: PreTrainedConfig, classes: list[str]) -> str:
    if not classes:
        return "A backbone and a decoder, pre-trained by contrast, to be fine-tuned on masks. It has no classifier yet."
    names = ", ".join(classes[:40]) + (", ..." if len(classes) > 40 else "")
    return f"A semantic segmentation network for {len(classes)} classes: {names}."


def _network(config: PreTrainedConfig, network: PreTrainedModel) -> dict[str, str]:
    backbone = f"`{config.backbone}` (timm)" + ", two of half the width, on lightness and on colour" * config.two_towers
    weights = f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} million"
    return {"backbone": backbone, "decoder": f"{config.decoder}, {config.decoder_channels} channels", "weights": weights}


def _eval_results(found: dict) -> list[EvalResult]:
    """In the Hub's format, which the page of the model shows."""
    names = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
    kind = {"task_type": "image-segmentation", "task_name": "semantic segmentation", "dataset_type": found["dataset"]}
    return [
        EvalResult(**kind, dataset_name=found["dataset"], dataset_split=found["split"], metric_type=key, metric_name=name,
                   metric_value=round(found[key], 4))  # fmt: skip
        for key, name in names.items() if found[key] is not None
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
        {"name": name, "iou": percent(iou), "accuracy": percent(found["per_class_accuracy"][name])}
        for name, iou in found["per_class_iou"].items()
    ]
    means = {key: percent(found[key]) for key in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    return found | means | {"how": ", ".join([*how, found["precision"].replace("no", "fp32")]), "classes": rows}


def _licence(licence: str | None) -> str:
    weights = f"Weights: {licence}." if licence else "Who published these weights has not stated a licence for them (`--license`)."
    return f"{weights} The code of the model: Apache-2.0. The terms of the training images apply beside both."


def _limits(config: PreTrainedConfig, classes: list[str], stages: list[dict], evaluations: list[dict]) -> list[str]:
    seen = dict.fromkeys(stage["facts"]["data"].replace(", ", " (") + ")" for stage in stages if "data" in stage["facts"])
    data = " and ".join(seen) or ("no images" if stages else "images that are not known")
    limits = [f"Trained on {data} only; other cameras, places and classes were not seen."]
    if not classes:
        return [*limits, "Not a segmenter before it is fine-tuned: the classifier of a loaded model is random."]
    limits.append(f"Every pixel gets one of the {len(classes)} classes, whatever it shows; the scores are not calibrated.")
    if config.base_size:
        limits.append(f"Images are brought to {config.base_size} px on the short side; what is small there is missed.")
    if not evaluations:
        limits.append("Its accuracy was not measured.")
    elif absent := [name for name, iou in evaluations[-1]["per_class_iou"].items() if iou is None]:
        limits.append(f"Not measured, since they do not occur in the last evaluation: {', '.join(absent)}.")
    return limits

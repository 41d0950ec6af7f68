"""Measure a fine-tuned model: per-class IoU, mean IoU, pictures of predictions beside the truth.

accelerate launch recipes/evaluate.py --model runs/finetune --split test
accelerate launch recipes/evaluate.py --model OUT2 --dataset camvid --data-dir DIR --split test --output-dir OUT3
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator

from mscl_hf import MsclConfig
from mscl_hf.cli import command, flat, parse
from mscl_hf.data.build import DataOptions, open_whole_split, usable
from mscl_hf.data.dataset import SegmentationData
from mscl_hf.data.folder_layout import UnknownSplit
from mscl_hf.data.image_range import check_values
from mscl_hf.data.labels import label_warnings, with_labels_of_model
from mscl_hf.evaluation.evaluate import evaluate_model, in_sentences
from mscl_hf.evaluation.inference import InferenceOptions
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.models.open_model import open_model
from mscl_hf.records.files import write_json
from mscl_hf.records.run_folder import open_run
from mscl_hf.records.versions import commit
from mscl_hf.sharing.model_card import copy_beside, write_card
from mscl_hf.sharing.provenance import pinned_options, provenance, with_evaluation
from mscl_hf.sharing.publish import publish
from mscl_hf.sharing.upload import HubOptions, check_can_push, push_result
from mscl_hf.training.crash_report import reporting
from mscl_hf.training.launcher import check_precision, launched_precision
from mscl_hf.training.setup import make_accelerator
from mscl_hf.training.signals import leave_on_signal


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure, and on what."""

    model: str = field(default="runs/finetune", metadata={"help": "model folder, Hub name or NAME@REVISION"})
    output_dir: str = field(default="runs/evaluate", metadata={"help": "new or empty folder for results.json and pictures"})
    split: str = field(default="test", metadata={"help": "split to measure on"})
    score_classes: list[str] | None = field(default=None, metadata={"help": "take the mean over these classes only"})
    pictures: int = field(default=8, metadata={"help": "images in the picture of predictions"})
    by_evaluate: str | None = field(
        default=None, metadata={"help": "also compute the mean IoU by evaluate.load of this: mean_iou (from the Hub), or hub/mean_iou"}
    )
    precision: str = field(
        default_factory=launched_precision, metadata={"help": "fp32 or bf16; default: the launcher's --mixed_precision, else fp32"}
    )
    seed: int = field(default=0, metadata={"help": "copied into the results, for the record"})

    def __post_init__(self):
        check_precision(self.precision)


KINDS = (EvaluateOptions, InferenceOptions, DataOptions, HubOptions)


@command
@leave_on_signal("stopped; the same command measures anew")
def main() -> None:
    run, *_ = options = pinned_options(parse(KINDS, __doc__.splitlines()[0]))
    accelerator = make_accelerator(run.precision)
    out = Path(run.output_dir)
    open_run(out, flat(*options) | {"commit": commit()}, True, accelerator)  # the same command measures anew, what was stopped too
    with reporting(out):
        evaluate(options, out, accelerator)


def open_scored_split(options: DataOptions, split: str, classes: tuple[str, ...]) -> SegmentationData:
    """The split to measure on. Raises ValueError, which names the splits of the data, where it has no such one."""
    try:
        return open_whole_split(options, split, classes)
    except UnknownSplit as error:
        available = error.available
        if not available:  # another layout, which the error describes
            raise
        if len(available) == 1:
            remedy = f"{available[0]}, the only split of the data. Choose it if the model was not trained on it, or add a split"
        else:
            remedy = f"one of {', '.join(available)}. Choose one of them"
        raise ValueError(f"--split is {split}; expected {remedy}") from error


def evaluate(options: tuple, out: Path, accelerator: Accelerator) -> None:
    """Measure the model, and leave results.json and pictures in `out`."""
    run, inference, data_options, hub = options
    if open_model(MsclConfig, run.model).architectures == ["MsclForPreTraining"]:
        raise ValueError(f"{run.model} is pre-trained and has no classifier yet; fine-tune it first, and give that folder to --model")
    network, loaded = open_model(MsclForSemanticSegmentation, run.model, output_loading_info=True)
    if any(key.startswith("classifier.") for key in loaded["missing_keys"]):  # whatever the configuration says that the model is
        raise ValueError(f"{run.model} holds no classifier; fine-tune it first, and give that folder to --model")
    config = network.config
    classes = tuple(config.id2label[i] for i in range(config.num_labels))
    data_options = data_options.with_range_of(run.model, config.image_range)
    data_options, warnings = with_labels_of_model(data_options, config.label_map, config.reduce_labels, accelerator.print)
    data = open_scored_split(data_options, run.split, classes)
    check_values(data, accelerator.print)
    data = usable(data, data_options, accelerator.print)
    warnings += label_warnings([], data, data_options)
    for warning in warnings:
        accelerator.print(f"warning: {warning}")
    record = provenance(run.model, accelerator.print)
    hub = replace(hub, license=hub.license or record["license"])
    if accelerator.is_main_process:
        check_can_push(hub)
    results = evaluate_model(
        network, data, accelerator, inference, config.image_mean, config.image_std,
        seed=run.seed, config=flat(run, inference, data_options, hub), score_classes=run.score_classes, pictures_dir=out,
        num_pictures=run.pictures, by_evaluate=run.by_evaluate,
    )  # fmt: skip
    results |= {"warnings": warnings, "commit": commit(), "model": run.model}
    if accelerator.is_main_process:
        write_json(out / "results.json", results)  # the first: nothing behind it can lose the figures
        for name, iou in results["per_class_iou"].items():
            print(f"{name:>16} {'absent' if iou is None else f'{iou:.4f}'}")
        print("\n".join([*in_sentences(results), f"pictures and results.json: {out}"]))
        if hub.push_to_hub:  # the model goes out with what was measured
            publish(network, out)
            copy_beside(run.model, out)
            write_card(out, network, with_evaluation(record, results, data_options) | {"license": hub.license})
    accelerator.end_training()
    if accelerator.is_main_process:
        push_result(out, hub)


if __name__ == "__main__":
    main()

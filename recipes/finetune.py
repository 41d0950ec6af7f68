"""Fine-tune a pre-trained model folder on masks: cross-entropy or another loss, then mean IoU on the held-out split.

accelerate launch recipes/finetune.py --model runs/pretrain
accelerate launch recipes/finetune.py --model OUT --dataset camvid --data-dir DIR --train-count 37 --output-dir OUT2
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from mscl_hf import MsclConfig
from mscl_hf.cli import command, flat, parse, print_table, printable
from mscl_hf.data import SegmentationData
from mscl_hf.data.build import DataOptions, finetuning_data, open_held_out, with_image_range
from mscl_hf.data.labels import label_fields, label_warnings, require_two_classes
from mscl_hf.data.loader import TrainingData
from mscl_hf.evaluation.evaluate import draw_predictions, evaluate_model, in_sentences
from mscl_hf.evaluation.inference import InferenceOptions
from mscl_hf.methods import SegmentationTraining
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES, LossOptions
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.models.open_model import open_model, open_segmenter
from mscl_hf.records.files import write_json
from mscl_hf.records.run_folder import open_run
from mscl_hf.records.versions import commit
from mscl_hf.sharing.model_card import in_words, write_card
from mscl_hf.sharing.provenance import data_name, pinned_options, provenance, stage_record, with_evaluation
from mscl_hf.sharing.publish import publish, typical_size
from mscl_hf.sharing.upload import HubOptions, check_can_push, push_result
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.crash_report import reporting
from mscl_hf.training.distributed import any_process, together
from mscl_hf.training.finishing import Finishing
from mscl_hf.training.loop import TrainOptions, fit
from mscl_hf.training.probe import start_classifier
from mscl_hf.training.run_figures import draw_training
from mscl_hf.training.setup import make_accelerator
from mscl_hf.training.signals import leave_on_signal
from mscl_hf.transforms.views import TrainView, check_colour, check_scales


@dataclass(frozen=True)
class FinetuneOptions:
    """Where from, where to, and the augmentation."""

    model: str = field(default="runs/pretrain", metadata={"help": "model folder, Hub name or NAME@REVISION to start from"})
    output_dir: str = field(default="runs/finetune", metadata={"help": "new or empty folder for the model and its records"})
    list_losses: bool = field(default=False, metadata={"help": "print the losses and stop"})
    image_size: int | None = field(default=None, metadata={"help": "height of the training crop in px; default: as pre-trained"})
    image_width: int | None = field(default=None, metadata={"help": "its width in px; default: as pre-trained, or square"})
    base_size: int | None = field(default=None, metadata={"help": "short side before cropping in px, 0 = native; default: as pre-trained"})
    min_scale: float = field(default=0.5, metadata={"help": "smallest random scale, as a factor of the base size"})
    max_scale: float = field(default=2.0, metadata={"help": "largest random scale, as a factor of the base size"})
    colour: float = field(default=0.3, metadata={"help": "strength of the colour distortion; 0 = none"})
    auxiliary_loss_weight: float = field(default=0.4, metadata={"help": "weight of the auxiliary head's loss; 0 = no such head"})
    dropout: float = field(default=0.1, metadata={"help": "before the classifier"})
    probe_batches: int = field(default=24, metadata={"help": "batches of frozen features to fit a new classifier on; 0 = a random one"})

    def __post_init__(self):
        check_scales(self.min_scale, self.max_scale)
        check_colour(self.colour)
        if self.probe_batches < 0:
            raise ValueError(f"--probe-batches is {self.probe_batches}; it must be at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout is {self.dropout}; it must be at least 0 and below 1")
        if any(side is not None and side < 16 for side in (self.image_size, self.image_width)) or (self.base_size or 0) < 0:
            raise ValueError(
                f"--image-size {self.image_size}, --image-width {self.image_width} and --base-size {self.base_size}: give at least 16, 16 "
                "and 0 (native)"
            )
        if not self.auxiliary_loss_weight >= 0:
            raise ValueError(f"--auxiliary-loss-weight is {self.auxiliary_loss_weight}; it must be at least 0")


@dataclass(frozen=True)
class FinetuneTrainOptions(TrainOptions):
    """Budget, optimizer, precision, checkpoints, logs."""

    lr: float = field(default=0.1, metadata={"help": "peak learning rate"})
    schedule: str = field(default="poly", metadata={"help": "cosine or poly (power 0.9), to zero"})


KINDS = (FinetuneOptions, LossOptions, FinetuneTrainOptions, DataOptions, HubOptions)


@command
@leave_on_signal("stopped; the same command with --resume continues")
def main() -> None:
    run, _, train, _, hub = options = pinned_options(parse(KINDS, __doc__.splitlines()[0]))
    if run.list_losses:
        print_losses()
        return
    set_seed(train.seed)
    accelerator = make_accelerator(train.precision, train.report_to, run.output_dir)
    out = Path(run.output_dir)
    open_run(out, flat(*options) | {"commit": commit()}, train.resume, accelerator)
    with reporting(out):
        finishing = finetune(options, out, accelerator)
    if accelerator.is_main_process:
        with finishing.step("push"):
            if hub.push_to_hub is not None:
                finishing.require_for_push()
            push_result(out, hub)
    finishing.exit_if_failed()


def finetune(options: tuple, out: Path, accelerator: Accelerator) -> Finishing:
    """Train the classifier and what lies below it on the masks, write the model into `out`, then score it; returns which of the steps
    behind the model failed."""
    run, loss, train, data_options, hub = options
    trained_as = open_model(MsclConfig, run.model)
    sizes = training_sizes(run, trained_as)
    view = TrainView(sizes["image_size"], sizes["base_size"], (run.min_scale, run.max_scale), run.colour, sizes["image_width"])
    data_options = with_image_range(data_options.with_range_of(run.model, trained_as.image_range), say=accelerator.print)
    data, held_out = open_data(data_options, view, train, accelerator.print)
    network, new_classifier = open_network(run, sizes, (data.stream or data.labelled).classes, data_options, accelerator.print)
    config, history = network.config, provenance(run.model, accelerator.print)["stages"]
    warnings = label_warnings([data.stream, data.labelled], held_out, data_options) if accelerator.is_main_process else []
    for warning in warnings:
        accelerator.print(f"warning: {warning}")
    what = {"loss": loss.loss, "options": in_words(asdict(loss) | {"loss": None, "auxiliary_loss_weight": run.auxiliary_loss_weight})}
    stage = stage_record("Fine-tuning", what, data, options, config, accelerator, run.model, warnings=warnings)
    title = f"{config.backbone}, fine-tuned on {data_name(data_options)}"
    record = {"title": title, "license": hub.license, "stages": [*history, stage], "evaluations": []}
    size = typical_size(data.labelled or held_out, config.base_size)
    was_trained = [checkpoint_folder.step_of(folder) for folder in checkpoint_folder.complete(out)[-1:]] == [train.max_steps]
    if accelerator.is_main_process:
        check_can_push(hub)

    accelerator.init_trackers("mscl_hf", printable(*options))
    method = SegmentationTraining(network, **asdict(loss))
    if run.probe_batches and new_classifier and not checkpoint_folder.complete(out):
        right = start_classifier(method.to(accelerator.device), data, run.probe_batches)
        accelerator.print("no labelled pixel to fit the classifier on" if right is None else f"classifier fitted: {right:.1%} of the cells")
    method = fit(method, data, train, out, accelerator, max_bad_images=data_options.max_bad_images)
    together(accelerator, lambda: publish(method.network, out, size), "writing the model")
    accelerator.print(f"fine-tuned model: {out}")
    return finish(method.network, held_out, options, record, out, accelerator, was_trained)


def open_data(
    options: DataOptions, view: TrainView, train: TrainOptions, log: Callable[[str], None]
) -> tuple[TrainingData, SegmentationData | None]:
    """The labelled images to train on, and the held-out ones with the same classes. Raises ValueError."""
    data = finetuning_data(options, view, train.batch_size, train.seed, log)
    classes = (data.stream or data.labelled).classes
    held_out = open_held_out(options, log, classes)
    if held_out is not None and held_out.classes != classes:
        raise ValueError(f"{held_out.name} has {len(classes)} classes to train on and {held_out.num_classes} held out; give --classes")
    require_two_classes(data.stream or data.labelled, held_out)
    return data, held_out


def training_sizes(run: FinetuneOptions, trained_as: MsclConfig) -> dict[str, int | None]:
    """Fields of the configuration, in px: those that the options give, else those of the pre-training."""
    return {
        "image_size": trained_as.image_size if run.image_size is None else run.image_size,
        "image_width": run.image_width or (trained_as.image_width if run.image_size is None else None),
        "base_size": trained_as.base_size if run.base_size is None else run.base_size,
    }


def open_network(
    run: FinetuneOptions, sizes: dict[str, int | None], classes: Sequence[str], data: DataOptions, log: Callable[[str], None]
) -> tuple[MsclForSemanticSegmentation, bool]:
    """The network, and whether its classifier is new; how the masks are read becomes part of its configuration."""
    return open_segmenter(
        run.model,
        classes,
        log,
        use_auxiliary_head=run.auxiliary_loss_weight > 0,
        auxiliary_loss_weight=run.auxiliary_loss_weight,
        decoder_dropout=run.dropout,
        image_range=data.image_range,
        **label_fields(data),
        **sizes,
    )


def finish(
    network: MsclForSemanticSegmentation, held_out: SegmentationData | None, options: tuple, record: dict, out: Path,
    accelerator: Accelerator, was_trained: bool,
) -> Finishing:  # fmt: skip
    """Score the model in `out`, draw pictures, write the card. was_trained: this run only repeats what is missing of these."""
    run, _, train, data_options, _ = options
    finishing, file = Finishing(out, accelerator.is_main_process), out / "results.json"
    results = stored_results(file) if was_trained else None
    is_scored = not any_process(accelerator, results is None)  # the same on all processes, which score together
    measured = (InferenceOptions(base_size=network.config.base_size), network.config.image_mean, network.config.image_std)
    with finishing.step("scoring"):
        if held_out is not None and not is_scored:
            results = evaluate_model(network, held_out, accelerator, *measured, seed=train.seed, config=flat(*options))
            results |= {"warnings": record["stages"][-1]["warnings"], "commit": commit(), "model": run.model}
            if accelerator.is_main_process:
                write_json(file, results)
        for sentence in in_sentences(results) if results else ():
            accelerator.print(sentence)
    if accelerator.is_main_process:
        with finishing.step("pictures"):
            draw_training(out, record["title"])
            if held_out is not None and not (is_scored and (out / "predictions.png").is_file()):
                draw_predictions(network, held_out, accelerator, out, *measured)
        with finishing.step("model card"):
            write_card(out, network, with_evaluation(record, results, data_options) if results else record)
    with finishing.step("trackers"):
        accelerator.end_training()
    return finishing


def stored_results(file: Path) -> dict | None:
    """The scores of a finished run; None where there are none, or where an earlier version wrote them, which counted no classes."""
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return results if "classes_scored" in results else None


def print_losses() -> None:
    rows = [("name", "loss", "paper", "year", "adds", "options")]
    for name, row in FINETUNING_LOSSES.items():
        flags = " ".join(f"--{option.replace('_', '-')}" for option in row.options)
        rows.append((name, row.title, row.paper, str(row.year or "-"), row.adds, flags or "-"))
    print_table(rows)


if __name__ == "__main__":
    main()

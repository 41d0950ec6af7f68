"""Fine-tune a pre-trained model folder on masks: cross-entropy or another loss, then mean IoU on the held-out split.

accelerate launch recipes/finetune.py --model runs/pretrain
accelerate launch recipes/finetune.py --model OUT --dataset camvid --data-dir DIR --train-count 37 --output-dir OUT2
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from mscl_hf import MsclConfig, manifest
from mscl_hf.card import in_words, write_card
from mscl_hf.data.training import DataOptions, finetuning_data, open_held_out, with_image_range
from mscl_hf.data.views import TrainView, check_colour, check_scales
from mscl_hf.evaluate import evaluate_model
from mscl_hf.inference import InferenceOptions
from mscl_hf.methods import SegmentationTraining
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES, LossOptions
from mscl_hf.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.options import command, flat, make_accelerator, parse, print_table, printable
from mscl_hf.probe import start_classifier
from mscl_hf.provenance import data_name, pinned_options, provenance, stage_record, with_evaluation
from mscl_hf.publish import commit, draw_training, open_model, publish, typical_size
from mscl_hf.report import reporting
from mscl_hf.run_folder import open_run, write_json
from mscl_hf.stopping import leave_on_signal
from mscl_hf.train import TrainOptions, fit
from mscl_hf.upload import HubOptions, check_can_push, push_result


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
        finetune(options, out, accelerator)
    if accelerator.is_main_process:
        push_result(out, hub)


def finetune(options: tuple, out: Path, accelerator: Accelerator) -> None:
    """Train the classifier and what lies below it on the masks, measure, and leave the model in `out`."""
    run, loss, train, data_options, hub = options
    trained_as = open_model(MsclConfig, run.model)
    image_size = trained_as.image_size if run.image_size is None else run.image_size
    base_size = trained_as.base_size if run.base_size is None else run.base_size
    image_width = run.image_width or (trained_as.image_width if run.image_size is None else None)
    view = TrainView(image_size, base_size, (run.min_scale, run.max_scale), run.colour, image_width)
    data_options = with_image_range(data_options.with_range_of(run.model, trained_as.image_range), say=accelerator.print)
    data = finetuning_data(data_options, view, train.batch_size, train.seed, accelerator.print)
    classes = (data.stream or data.labelled).classes
    held_out = open_held_out(data_options, accelerator.print, classes)
    if held_out is not None and held_out.classes != classes:
        raise ValueError(f"{held_out.name} has {len(classes)} classes to train on and {held_out.num_classes} held out; give --classes")
    network, loaded = open_model(
        MsclForSemanticSegmentation,
        run.model,
        output_loading_info=True,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
        ignore_mismatched_sizes=True,  # a classifier for other classes starts anew
        use_auxiliary_head=run.auxiliary_loss_weight > 0,
        auxiliary_loss_weight=run.auxiliary_loss_weight,
        decoder_dropout=run.dropout,
        image_size=image_size,
        image_width=image_width,
        base_size=base_size,
        image_range=data_options.image_range,
    )
    config, history = network.config, provenance(run.model, accelerator.print)["stages"]
    if accelerator.is_main_process:
        check_can_push(hub)

    accelerator.init_trackers("mscl_hf", printable(*options))
    method = SegmentationTraining(network, **asdict(loss))
    if run.probe_batches and has_new_classifier(loaded) and not manifest.complete(out):
        right = start_classifier(method.to(accelerator.device), data, run.probe_batches)
        accelerator.print("no labelled pixel to fit the classifier on" if right is None else f"classifier fitted: {right:.1%} of the cells")
    method = fit(method, data, train, out, accelerator, max_bad_images=data_options.max_bad_images)

    if held_out is not None:
        inference = InferenceOptions(base_size=config.base_size)
        results = evaluate_model(
            method.network, held_out, accelerator, inference, config.image_mean, config.image_std,
            seed=train.seed, config=flat(*options), pictures_dir=out,
        )  # fmt: skip
    if accelerator.is_main_process:
        title = f"{config.backbone}, fine-tuned on {data_name(data_options)}"
        publish(method.network, out, typical_size(data.labelled or held_out, config.base_size))
        what = {"loss": loss.loss, "options": in_words(asdict(loss) | {"loss": None, "auxiliary_loss_weight": run.auxiliary_loss_weight})}
        stage = stage_record("Fine-tuning", what, data, options, config, accelerator, run.model)
        record = {"title": title, "license": hub.license, "stages": [*history, stage], "evaluations": []}
        if held_out is not None:
            write_json(out / "results.json", results | {"commit": commit(), "model": run.model})
            record = with_evaluation(record, results, data_options)
            print(f"mean IoU on {results['split']}: {results['mean_iou']:.4f}")
        draw_training(out, title)
        write_card(out, method.network, record)
        print(f"fine-tuned model: {out}")
    accelerator.end_training()


def has_new_classifier(loaded: dict) -> bool:
    """Whether the checkpoint had no classifier for these classes. loaded: what from_pretrained says of the weights."""
    absent = [*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])]
    return any(key.startswith("classifier.") for key in absent)


def print_losses() -> None:
    rows = [("name", "loss", "paper", "year", "adds", "options")]
    for name, row in FINETUNING_LOSSES.items():
        flags = " ".join(f"--{option.replace('_', '-')}" for option in row.options)
        rows.append((name, row.title, row.paper, str(row.year or "-"), row.adds, flags or "-"))
    print_table(rows)


if __name__ == "__main__":
    main()

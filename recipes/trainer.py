"""Fine-tune a model folder by transformers' Trainer: an example of how the parts of this project stand in someone else's loop.

python recipes/trainer.py --model runs/pretrain
python recipes/trainer.py --model OUT --dataset camvid --data-dir DIR --train-count 37 --output-dir OUT2

Trainer's own flags are flags here too (--help). recipes/finetune.py does more: other losses, a fitted classifier, its own checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, EvalPrediction, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from mscl_hf import data, evaluation, models, sharing
from mscl_hf.cli import command, parse
from mscl_hf.config import DataConfig, Section, option
from mscl_hf.models.normalization import image_statistics, normalize
from mscl_hf.transforms.views import TrainView


@dataclass(frozen=True)
class ModelConfig(Section):
    """The model to start from."""

    model: str = option("runs/pretrain", "model folder, Hub name or NAME@REVISION to start from")
    resume: bool = option(False, "continue from the last checkpoint in --output-dir")


@dataclass
class Arguments(TrainingArguments):
    """Trainer's own, some with other defaults: held-out images come one by one, each at its own size, to a metric that adds them up."""

    output_dir: str | None = field(default="runs/trainer", metadata={"help": "folder for checkpoints and the model"})
    max_steps: int = field(default=150, metadata={"help": "optimizer steps"})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "1, unless all held-out images have one size"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "feed the metric batch by batch"})


@dataclass(frozen=True)
class TrainerConfig:
    """The model, Trainer's own arguments and the data."""

    model: ModelConfig
    arguments: Arguments
    data: DataConfig


class Prepared(Dataset):
    """Item n is what `prepare` makes of (image n, n); images are counted round and round."""

    def __init__(self, data: "data.SegmentationData", count: int, prepare: Callable[["data.Sample", int], dict[str, Tensor]]):
        self.data, self.count, self.prepare = data, count, prepare

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return self.prepare(self.data.read(n % len(self.data)), n)


def random_crop(sample: "data.Sample", n: int, view: TrainView, config: "models.MsclConfig", seed: int) -> dict[str, Tensor]:
    """A function of (seed, n) alone, so that a resumed run sees what an uninterrupted one does."""
    crop = view(sample, np.random.default_rng([seed, n]))
    crop = view.on_device({name: value[None] for name, value in crop.items()})  # colors are made for a batch
    pixels = normalize(crop["image"], *image_statistics(config))[0]
    return {"pixel_values": pixels, "labels": crop["mask"][0].long()}


def whole_image(sample: "data.Sample", n: int, processor) -> dict[str, Tensor]:
    """As a pipeline prepares it; the labels keep their size, which must be one where several processes measure."""
    pixels = processor(np.array(sample.image), return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    return {"pixel_values": pixels, "labels": torch.from_numpy(sample.mask.astype(np.int64))}


def class_ids(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, K, h, w) -> ids (B, H, W) at the size of the labels."""
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


@command
def main() -> None:
    config = sharing.pin_revisions(parse(TrainerConfig, __doc__.splitlines()[0]))
    run, arguments, options = config.model, config.arguments, config.data
    if options.streaming or arguments.max_steps < 1:
        raise ValueError(f"--max-steps is {arguments.max_steps}, --streaming {options.streaming}; give at least 1, and no --streaming")
    if options.tile is not None:
        raise ValueError(f"--tile is {' '.join(map(str, options.tile))}; expected none here. Leave it out, or use mscl-finetune.")
    there = Path(arguments.output_dir).is_dir() and get_last_checkpoint(arguments.output_dir) is not None
    if run.resume != there:
        raise ValueError(f"{arguments.output_dir} holds {'a' if there else 'no'} checkpoint; {'add' if there else 'leave out'} --resume")
    set_seed(arguments.seed)
    config, processor = models.open_model(models.MsclConfig, run.model), models.open_model(AutoImageProcessor, run.model)
    view = TrainView(config.image_size, config.base_size, image_width=config.image_width)
    options = data.with_val_split(options, Path(arguments.output_dir), run.model)
    options = options.with_range_of(run.model, config.image_range).with_bands_of(run.model, config.bands, config.num_channels)
    options = data.with_image_range(options)
    labelled, _ = data.labelled_part(options, view, print)
    held_out = data.open_held_out(options, classes=labelled.classes)
    for warning in data.label_warnings([labelled], held_out, options):
        print(f"warning: {warning}")
    # Backbone and decoder come over, a classifier for other classes is new.
    fields = {"image_range": options.image_range, "bands": options.bands} | data.label_fields(options)
    model, metric = models.open_segmenter(run.model, labelled.classes, **fields)[0], evaluation.MeanIoU()

    def mean_iou(batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        metric.add_batch(predictions=batch.predictions.cpu().numpy(), references=batch.label_ids.cpu().numpy())
        if not compute_result:  # more batches follow
            return {}
        figures = metric.compute(num_labels=len(labelled.classes), ignore_index=255)
        scored = {"classes_scored": int(np.isfinite(figures["per_category_iou"]).sum())}
        return scored | {name: float(figures[name]) for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}

    count = arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    crops = Prepared(labelled, count, partial(random_crop, view=view, config=config, seed=arguments.seed))  # one pass is the whole run
    images = None if held_out is None else Prepared(held_out, len(held_out), partial(whole_image, processor=processor))
    trainer = Trainer(model, arguments, train_dataset=crops, eval_dataset=images, processing_class=processor, compute_metrics=mean_iou,
                      preprocess_logits_for_metrics=class_ids)  # fmt: skip
    trainer.train(resume_from_checkpoint=run.resume or None)
    trainer.save_model()  # with the processor
    if images is not None:
        figures = trainer.evaluate()
        trainer.save_metrics("eval", figures)
        scored = f"over {figures['eval_classes_scored']} of {len(labelled.classes)} classes"
        print(f"mean IoU on {held_out.split}: {figures['eval_mean_iou']:.4f} ({scored})")
    print(f"fine-tuned model: {arguments.output_dir}")


if __name__ == "__main__":
    main()

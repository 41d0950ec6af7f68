"""Show in minutes what pre-training adds where few images have masks: pre-train, fine-tune with and without it, and measure both.

mscl-quickstart
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from transformers.utils import logging

from mscl_hf import data, evaluation
from mscl_hf.cli import command, parse_sections, print_table
from mscl_hf.config import (
    ContrastConfig,
    DataConfig,
    DatasetConfig,
    EvaluateConfig,
    EvaluateRun,
    FinetuneConfig,
    FinetuneRun,
    FinetuneTrainingConfig,
    NetworkConfig,
    PretrainConfig,
    PretrainRun,
    TrainingConfig,
)
from mscl_hf.config.fields import Section, option
from mscl_hf.config.launcher import launched_precision
from mscl_hf.progress_bar import chain
from mscl_hf.training.signals import leave_on_signal
from mscl_hf.visual.figures import comparison_strip

if __package__:
    from . import evaluate_model, finetune, pretrain
else:  # python recipes/quickstart.py
    import evaluate_model
    import finetune
    import pretrain

NETWORK = NetworkConfig(backbone="test_resnet", output_stride=8, decoder_channels=64, image_size=64, base_size=96, local_grid=8)
CONTRAST = ContrastConfig(losses="local+pixel", local_weight=1.0, local_scope="image")
PRETRAINING, WITHOUT, WITH, SCORES = "1/4 pre-training", "2/4 fine-tuning without it", "3/4 fine-tuning with it", "4/4 evaluation"
ROWS = 5  # of the picture
NEXT = """
On a folder of your own, with images/ and masks/ (a mask is a PNG with a class id per pixel; some images may have none):
  mscl-pretrain --dataset folder --data-dir DIR --masked-only --val-fraction 0.2 --unlabelled rest --pretrained --optim adamw \\
      --learning-rate 0.0005 --output-dir runs/mine
  mscl-finetune --model runs/mine --dataset folder --data-dir DIR --masked-only --val-fraction 0.2 --optim adamw \\
      --learning-rate 0.001 --output-dir runs/mine-tuned
  mscl-predict --model runs/mine-tuned --images NEW_IMAGES --output-dir runs/mine-masks --overlays
"""


@dataclass(frozen=True)
class QuickstartConfig(Section):
    """What is run: all stages on the synthetic images, which need no files."""

    _argument_group_name: ClassVar[str] = "quickstart"

    output_dir: str = option("runs/quickstart", "new or empty folder for the models, their scores, quickstart.png and log.txt")
    train_count: int = option(16, "images with masks; the other training images are read without their masks", at_least=1)
    pretrain_steps: int = option(300, "optimizer steps of pre-training", at_least=1)
    finetune_steps: int = option(60, "optimizer steps of each fine-tuning", at_least=1)
    mixed_precision: Literal["no", "bf16"] = option(launched_precision, "no = fp32 (default: that of `accelerate launch`, else no)")
    seed: int = option(0, "seed of weights, sampling, augmentation and the choice of masks", at_least=0, at_most=2**32 - 1)


@dataclass(frozen=True)
class QuickstartResult:
    """without, with_pretraining: content of the two results.json. probe: mean IoU of a linear probe before and after pre-training."""

    out: Path
    without: dict
    with_pretraining: dict
    probe: tuple[float, float] | None


@command
@leave_on_signal("stopped; run it again with a new --output-dir")
def main() -> None:
    (config,) = parse_sections([QuickstartConfig], __doc__.splitlines()[0])
    result = quickstart(config)
    print_table(table(result))
    print(f"\nboth were fine-tuned for {config.finetune_steps} steps; results/quickstart.md compares with longer fine-tuning alone")
    if result.probe:
        print(f"linear probe mean IoU: {result.probe[0]:.3f} before pre-training, {result.probe[1]:.3f} after it")
    print(f"picture: {result.out / 'quickstart.png'}; models: {result.out / 'without'}, {result.out / 'with'}")
    print(NEXT.rstrip())


def quickstart(config: QuickstartConfig) -> QuickstartResult:
    """Run all stages in this process. Raises ValueError where the output folder holds files, or several processes were launched."""
    out = Path(config.output_dir)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}; expected one process. Start it without a launcher: mscl-quickstart.")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--output-dir is {out}, which is not empty; expected a new or empty folder. Give another one.")
    out.mkdir(parents=True, exist_ok=True)
    shares = {PRETRAINING: 0.25 * config.pretrain_steps, WITHOUT: 0.15 * config.finetune_steps, WITH: 0.15 * config.finetune_steps}
    with chain(shares | {SCORES: 10}) as stages, logging_to(out / "log.txt"):
        with stages.stage(PRETRAINING):
            pretrained = pretrain.pretrain(pretraining(config, "pretrain", "mscl"))
        with stages.stage(WITHOUT):
            random = pretrain.pretrain(pretraining(config, "random", "none"))
            without = finetune.finetune(finetuning(config, "random", "without"))
        with stages.stage(WITH):
            with_it = finetune.finetune(finetuning(config, "pretrain", "with"))
        with stages.stage(SCORES):
            scored = {name: evaluate_model.evaluate(evaluation_of(config, name)) for name in ("without", "with")}
            draw(scored, out / "quickstart.png")
    for result in (pretrained, random, without, with_it):
        if result.run.failed:
            raise OSError(f"{' and '.join(result.run.failed)} failed in {result.run.out}; {out / 'log.txt'} has the reason.")
    return QuickstartResult(out, scored["without"].results, scored["with"].results, pretrained.checks.probe)


def data_of(config: QuickstartConfig) -> DataConfig:
    """The synthetic images, of which train_count have masks; the held-out ones are for the linear probe."""
    return DataConfig(train_count=config.train_count, subset_seed=config.seed)


def pretraining(config: QuickstartConfig, name: str, method: str) -> PretrainConfig:
    """Pre-training into the folder `name`; method none writes a network with random weights."""
    steps = config.pretrain_steps
    training = TrainingConfig(
        max_steps=steps, batch_size=16, optim="adamw", learning_rate=0.003, warmup_steps=min(20, steps // 2), dataloader_num_workers=0,
        save_steps=0, mixed_precision=config.mixed_precision, seed=config.seed,
    )  # fmt: skip
    trains = method != "none"
    run = PretrainRun(
        output_dir=str(Path(config.output_dir) / name), method=method, unlabelled="rest" if trains else "none",
        health_steps=max(1, steps // 6),
    )  # fmt: skip
    return PretrainConfig(run, data_of(config), network=NETWORK, contrast=CONTRAST if trains else ContrastConfig(), training=training)


def finetuning(config: QuickstartConfig, model: str, name: str) -> FinetuneConfig:
    """Fine-tuning of the model in one folder, into another one; nothing is held out, since the test images are measured afterwards."""
    steps, out = config.finetune_steps, Path(config.output_dir)
    training = FinetuneTrainingConfig(
        max_steps=steps, batch_size=16, warmup_steps=min(10, steps // 2), dataloader_num_workers=0, save_steps=0,
        mixed_precision=config.mixed_precision, seed=config.seed,
    )  # fmt: skip
    run = FinetuneRun(model=str(out / model), output_dir=str(out / name))
    return FinetuneConfig(run, replace(data_of(config), val_split="none"), training=training)


def evaluation_of(config: QuickstartConfig, name: str) -> EvaluateConfig:
    """Evaluation of a fine-tuned model on the test images."""
    out = Path(config.output_dir)
    run = EvaluateRun(
        model=str(out / name), output_dir=str(out / f"scores-{name}"), mixed_precision=config.mixed_precision, seed=config.seed
    )
    return EvaluateConfig(run, DatasetConfig())


def draw(scored: dict, path: Path) -> None:
    """Draw evenly spaced test images with their masks and the predictions of both models."""
    images = data.load_data("synthetic", "test")
    samples = [images.read(i * len(images) // ROWS) for i in range(ROWS)]
    columns = {"truth": [sample.mask for sample in samples]}
    for name, result in scored.items():
        columns[f"{name} pre-training"] = evaluation.predict_masks(result.network, samples, result.run.accelerator)
    comparison_strip([sample.image for sample in samples], columns, images.classes, path)


def table(result: QuickstartResult) -> list[tuple[str, str, str]]:
    """The rows of the table: IoU of each class in %, and their mean, without and with pre-training."""
    without, with_it = result.without, result.with_pretraining
    rows = [("IoU in %", "without pre-training", "with pre-training")]
    for name, iou in [*without["per_class_iou"].items(), ("mean", without["mean_iou"])]:
        other = with_it["mean_iou"] if name == "mean" else with_it["per_class_iou"][name]
        rows.append((name, *("absent" if value is None else f"{100 * value:.1f}" for value in (iou, other))))
    return rows


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write what the stages print into a file, without the bars of transformers."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with path.open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


if __name__ == "__main__":
    main()

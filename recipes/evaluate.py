"""Measure a fine-tuned model: per-class IoU, mean IoU, pictures of predictions beside the truth.

accelerate launch recipes/evaluate.py --model runs/finetune --split test
accelerate launch recipes/evaluate.py --model OUT2 --dataset camvid --data-dir DIR --split test --output-dir OUT3
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from mscl_hf import checkpoint
from mscl_hf.data.training import DataOptions, open_split, usable
from mscl_hf.evaluate import evaluate_model
from mscl_hf.inference import InferenceOptions
from mscl_hf.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.options import command, flat, parse
from mscl_hf.publish import commit


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure, and on what."""

    model: str = field(default="runs/finetune", metadata={"help": "model folder or Hub name"})
    output_dir: str = field(default="runs/evaluate", metadata={"help": "new or empty folder for results.json and pictures"})
    split: str = field(default="test", metadata={"help": "split to measure on"})
    score_classes: list[str] | None = field(default=None, metadata={"help": "take the mean over these classes only"})
    pictures: int = field(default=8, metadata={"help": "images in the picture of predictions"})
    precision: str = field(default="fp32", metadata={"help": "fp32 or bf16"})
    seed: int = field(default=0, metadata={"help": "copied into the results, for the record"})


@command
def main() -> None:
    run, inference, data_options = options = parse((EvaluateOptions, InferenceOptions, DataOptions), __doc__.splitlines()[0])
    if run.precision not in ("fp32", "bf16"):
        raise ValueError(f"--precision is {run.precision!r}; choose fp32 or bf16")
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(run.precision, run.precision))
    out = Path(run.output_dir)
    data = usable(open_split(data_options, run.split), data_options, accelerator.print)
    network = MsclForSemanticSegmentation.from_pretrained(run.model)
    checkpoint.open_run(out, flat(*options), resume=False, is_main=accelerator.is_main_process)
    config = network.config
    results = evaluate_model(
        network, data, accelerator, inference, config.image_mean, config.image_std,
        seed=run.seed, config=flat(*options), score_classes=run.score_classes, pictures_dir=out, num_pictures=run.pictures,
    )  # fmt: skip
    if accelerator.is_main_process:
        checkpoint.write_json(out / "results.json", results | {"commit": commit(), "model": run.model})
        for name, iou in results["per_class_iou"].items():
            print(f"{name:>16} {'absent' if iou is None else f'{iou:.4f}'}")
        print(f"{'mean IoU':>16} {results['mean_iou']:.4f}\npictures and results.json: {out}")


if __name__ == "__main__":
    main()

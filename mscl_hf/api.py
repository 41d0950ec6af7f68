"""The recipes as Python functions, for notebooks and scripts: the same options, checks, training loop and files as the commands.

    pretrained = mscl_hf.pretrain(dataset="folder", data_dir="scans", masked_only=True, unlabelled="rest", output_dir="runs/mine")
    tuned = mscl_hf.finetune(model=pretrained, dataset="folder", data_dir="scans", masked_only=True, output_dir="runs/tuned")
    tuned.metrics["mean_iou"]
    predicted = mscl_hf.predict(model=tuned, images="new_scans", output_dir="runs/predicted", overlays=True)
"""

import base64
import html
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .cli import as_words, flat, parse
from .config import EvaluateConfig, FinetuneConfig, PredictConfig, PretrainConfig

SHOWN = ("quickstart.png", "predictions.png", "features.png", "training.png")  # the first two that exist are shown in a notebook


@dataclass(frozen=True)
class Result:
    """What a function returns. In a notebook it is shown as its metrics and its figures.

    model: the network, on the device of the run. metrics: numbers by name. out: the output folder, which is also accepted as `model` of
    the next function. figures: {name without ending: PNG file}. details: what the recipe returned.
    """

    model: Any = field(repr=False)
    metrics: dict[str, float | None]
    out: Path
    figures: dict[str, Path]
    details: Any = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.out)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{_number(value)}</td></tr>" for name, value in self.metrics.items())
        files = [self.out / name for name in SHOWN if (self.out / name).is_file()][:2]
        images = "".join(f'<img src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"><br>' for file in files)
        return f"<table>{rows}</table>{images}<code>{html.escape(str(self.out))}</code>"


def pretrain(config: PretrainConfig | None = None, **options: Any) -> Result:
    """Pre-train a network, as `mscl-pretrain` does.

    config: all options in their sections (default: the command's defaults). options: single ones by name, such as data_dir="scans",
    max_steps=1000; they replace those of config. The metrics are those of the last health check: linear probe, effective rank, spread.
    Raises ValueError for a wrong option before anything is read.
    """
    from .recipes import pretrain as recipe

    result = recipe.pretrain(configured(PretrainConfig, config, options))
    return _result(result.run, result.network, result.checks.last, result)


def finetune(config: FinetuneConfig | None = None, **options: Any) -> Result:
    """Fine-tune a model, as `mscl-finetune` does; arguments as in `pretrain`. model: a folder, a name on the Hub, or a Result.

    The metrics are those of the held-out split; {} without one.
    """
    from .recipes import finetune as recipe

    result = recipe.finetune(configured(FinetuneConfig, config, options))
    return _result(result.run, result.network, _scores(result.results), result)


def evaluate(config: EvaluateConfig | None = None, **options: Any) -> Result:
    """Measure a fine-tuned model on a split, as `mscl-evaluate` does; arguments as in `finetune`."""
    from .recipes import evaluate_model as recipe

    result = recipe.evaluate(configured(EvaluateConfig, config, options))
    return _result(result.run, result.network, _scores(result.results), result)


def predict(config: PredictConfig | None = None, **options: Any) -> Result:
    """Write masks of new images, as `mscl-predict` does; arguments as in `finetune`. details.images lists the images and their masks.

    The metrics are the shares of the classes in all predicted pixels. Images that cannot be read are a warning, and details.failed.
    """
    from .evaluation import failure_message
    from .recipes import predict as recipe

    result = recipe.predict(configured(PredictConfig, config, options))
    if result.failed:
        warnings.warn(failure_message(result.failed, len(result.failed) + len(result.images)), stacklevel=2)
    pixels = [sum(counts) for counts in zip(*(image.pixels for image in result.images))]
    shares = {name: count / sum(pixels) for name, count in zip(result.classes, pixels)}
    return _result(result.run, result.network, shares, result)


def configured(config_cls: type, config: Any, options: dict[str, Any]) -> Any:
    """Return the configuration with these options, which are read and checked as those of a command line are.

    None leaves an option at its default. Raises ValueError.
    """
    given = {name: str(value.out) if isinstance(value, Result) else value for name, value in options.items() if value is not None}
    values = flat(parse(config_cls, "", as_words(given)))
    if config is None:
        config = config_cls()
    sections = {f.name: getattr(config, f.name) for f in fields(config)}
    changes = {name: {option: values[option] for option in vars(section) if option in given} for name, section in sections.items()}
    return replace(config, **{name: replace(sections[name], **change) for name, change in changes.items() if change})


def _result(run: Any, network: Any, metrics: dict, details: Any) -> Result:
    if run.failed:
        raise RuntimeError(f"{', '.join(run.failed)} failed, see above; the model in {run.out} is complete. resume=True runs them again.")
    return Result(network, metrics, run.out, {path.stem: path for path in sorted(run.out.glob("*.png"))}, details)


def _scores(results: dict | None) -> dict[str, float | None]:
    names = ("mean_iou", "mean_accuracy", "overall_accuracy")
    return {} if results is None else {name: results[name] for name in names} | {
        f"IoU of {name}": iou for name, iou in results["per_class_iou"].items()
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

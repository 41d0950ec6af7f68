"""The configuration of each recipe: one object with named sections, from the command line, a YAML file or Python. Imports no torch."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .contrast import ContrastConfig, parse_losses
from .data import DataConfig, DatasetConfig
from .fields import Section, option
from .finetuning_loss import FinetuningLossConfig
from .hub import HubConfig
from .inference import InferenceConfig
from .launcher import check_launched, launched_precision
from .method import MethodConfig
from .network import NetworkConfig
from .semi_supervised import SemiSupervisedConfig
from .training import FinetuneTrainingConfig, TrainingConfig
from .views import CropConfig, ViewConfig

MODEL = "model folder, Hub name or NAME@REVISION"
PIXEL_LIMIT = 178_956_970  # that Pillow decodes
OUTPUT = "new or empty folder for the model and its records"


@dataclass(frozen=True)
class PretrainRun(Section):
    """What is trained, and on which images."""

    output_dir: str = option("runs/pretrain", OUTPUT)
    method: Literal[
        "none", "imagenet", "mscl", "simclr", "instdisc", "moco_v1", "moco_v2", "byol", "simsiam", "cmc", "pixpro", "pixcontrast",
        "densecl", "cp2", "zhao_within", "zhao_cross", "zhao_batch", "distill", "chaitanya_global", "chaitanya_global_local",
    ] = option("mscl", "pre-training method; see --list-methods")  # fmt: skip
    list_methods: bool = option(False, "print the methods and exit")
    start_from: str | None = option(None, f"{MODEL} to continue from (default: a new network)")
    unlabelled: str = option("none", "unlabelled images: none, rest (of the training split), or a folder of images")
    labelled_share: float = option(0.5, "share of labelled images in a batch that also has unlabelled ones", above=0, at_most=1)
    health_steps: int = option(
        100, "steps between health checks (linear probe on held-out masks; effective rank and spread of the embeddings, which show a "
        "collapse); 0 = only at the end", at_least=0,
    )  # fmt: skip


@dataclass(frozen=True)
class FinetuneRun(Section):
    """What is fine-tuned."""

    model: str = option("runs/pretrain", f"{MODEL} to start from")
    output_dir: str = option("runs/finetune", OUTPUT)
    list_losses: bool = option(False, "print the losses and exit")
    list_semi_supervised: bool = option(False, "print the semi-supervised methods and exit")
    class_weights: str | None = option(
        None, "weights of the classes in the cross-entropy: balanced (by the pixels of the training masks), or a CSV or JSON file of "
        "names and weights (default: all 1)",
    )  # fmt: skip
    auxiliary_loss_weight: float = option(0.4, "weight of the auxiliary head's loss; 0 = no such head", at_least=0)
    dropout: float = option(0.1, "dropout before the classifier", at_least=0, below=1)
    probe_batches: int = option(24, "batches of frozen features that a new classifier is fitted on; 0 = random weights", at_least=0)


@dataclass(frozen=True)
class EvaluateRun(Section):
    """What is measured, and on which images."""

    model: str = option("runs/finetune", f"{MODEL} to measure")
    output_dir: str = option("runs/evaluate", "new or empty folder for results.json and pictures")
    split: str = option("test", "split to measure on")
    score_classes: list[str] | None = option(None, "classes to average over (default: all)")
    pictures: int = option(8, "images in the picture of predictions; 0 = no picture", at_least=0)
    by_evaluate: str | None = option(
        None, "metric to compare with, for evaluate.load: mean_iou (from the Hub) or hub/mean_iou (default: no comparison)"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        launched_precision, "no = fp32 (default: that of `accelerate launch`, else no)"
    )
    seed: int = option(0, "copied into the results")

    def __post_init__(self):
        check_launched("mixed_precision", self.mixed_precision, launched_precision())
        super().__post_init__()


@dataclass(frozen=True)
class PredictRun(Section):
    """What is predicted, and what is written."""

    model: str = option("runs/finetune", f"{MODEL} that predicts")
    images: list[str] = option([], "images to predict: files, a folder with its sub-folders, or a pattern such as 'photos/*.jpg'")
    output_dir: str = option("runs/predict", "folder for masks and table: new, empty, or of the same command, which then continues")
    overlays: bool = option(False, "also write each image with the colors of its classes over it")
    confidence: bool = option(False, "also write the largest probability of each pixel, as 8-bit gray: 255 = certain")
    probabilities: bool = option(False, "also write the probabilities of all classes, as npz of 16-bit numbers (H, W, classes)")
    max_pixels: int = option(PIXEL_LIMIT, "largest image in px; larger ones are skipped as broken files, without decoding them", at_least=1)
    image_range: list[int] | None = option(
        None, "LOW HIGH, the values of black and white in images of more than 8 bits (default: the model's)"
    )
    bands: list[int] | None = option(None, "bands of the images to read, counted from 1 (default: the model's, or RGB)", at_least=1)
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        launched_precision, "no = fp32 (default: that of `accelerate launch`, else no)"
    )

    def __post_init__(self):
        check_launched("mixed_precision", self.mixed_precision, launched_precision())
        super().__post_init__()
        DatasetConfig(image_range=self.image_range, bands=self.bands)  # checks them


@dataclass(frozen=True)
class CheckRun(Section):
    """Where the picture is written, and the sizes by which small objects are judged."""

    output_dir: str = option("runs/check", "folder for samples.png")
    image_size: int | None = option(None, "height of the training crop in px (default: as mscl-pretrain chooses it)", at_least=16)
    base_size: int | None = option(None, "short side in px to which images are scaled; 0 = not scaled (default: as --image-size)")
    output_stride: int = option(16, "stride of the last features in px", at_least=1)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pre-training run."""

    run: PretrainRun = field(default_factory=PretrainRun)
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def method_options(self) -> dict:
        """Return the options of the method that were set, with --queue-size."""
        return self.method.changed() | ({"queue_size": self.contrast.queue_size} if self.contrast.queue_size else {})

    COMMON: ClassVar = (
        "dataset", "data_dir", "train_count", "unlabelled", "method", "backbone", "pretrained", "max_steps", "batch_size", "output_dir",
    )  # fmt: skip


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides a fine-tuning run."""

    run: FinetuneRun = field(default_factory=FinetuneRun)
    data: DataConfig = field(default_factory=DataConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    loss: FinetuningLossConfig = field(default_factory=FinetuningLossConfig)
    unlabelled_images: SemiSupervisedConfig = field(default_factory=SemiSupervisedConfig)
    training: FinetuneTrainingConfig = field(default_factory=FinetuneTrainingConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    COMMON: ClassVar = (
        "model", "dataset", "data_dir", "train_count", "label_map", "loss", "max_steps", "batch_size", "output_dir", "push_to_hub",
    )  # fmt: skip


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that decides an evaluation."""

    run: EvaluateRun = field(default_factory=EvaluateRun)
    data: DatasetConfig = field(default_factory=DatasetConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    COMMON: ClassVar = (
        "model", "dataset", "data_dir", "split", "flip", "scales", "mode", "mixed_precision", "output_dir", "push_to_hub",
    )  # fmt: skip


@dataclass(frozen=True)
class PredictConfig:
    """Everything that decides a prediction."""

    run: PredictRun = field(default_factory=PredictRun)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    COMMON: ClassVar = (
        "model", "images", "output_dir", "overlays", "confidence", "probabilities", "mode", "window", "flip", "scales",
    )  # fmt: skip


@dataclass(frozen=True)
class CheckConfig:
    """Everything that decides what `mscl-data check` reads."""

    run: CheckRun = field(default_factory=CheckRun)
    data: DataConfig = field(default_factory=DataConfig)

    COMMON: ClassVar = ("dataset", "data_dir", "classes", "class_colors", "label_map", "val_fraction", "image_size", "output_dir")

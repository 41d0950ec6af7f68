"""The end of a run: a folder that the Hugging Face ecosystem opens - weights, configuration, processor, code, pictures."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, SegformerImageProcessor
from transformers.utils import logging
from transformers.utils.hub import resolve_revision

from ..data.dataset import SegmentationData
from ..data.files import first_three
from ..data.pixels import displayed
from ..methods.base import Method
from ..models.checks_mscl import ADAPTER, is_adapter
from ..models.configuration_mscl import MsclConfig
from ..models.modeling_mscl import MsclForSemanticSegmentation
from ..records.run_folder import UNFINISHED
from ..training.health import features
from ..training.log import read_log
from ..transforms.crops import central_crop, cut
from ..visual.figures import feature_maps_sheet, training_figure


def open_model(kind: type, name: str, **options) -> Any:
    """`kind.from_pretrained`, kind a model, a configuration or an Auto class; ValueError in one sentence when there is none at `name`: a
    folder, a Hub name, or NAME@REVISION. No code of a model is run, and nothing is unpickled."""
    place, revision = split_revision(name)
    if not Path(place).exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):  # nor can it be a Hub name
        raise ValueError(f"there is no model folder {name}; give the output folder of a finished run, or a name on the Hub")
    if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in ("config.json", ADAPTER)):
        raise ValueError(f"the folder {name} holds no model (no config.json); give one in which a run has ended")
    if revision is not None and options.get("revision") is None:
        options["revision"] = revision
    if kind.__name__.startswith("Auto"):
        options["trust_remote_code"] = False
    if issubclass(kind, PreTrainedModel):
        options = {"dtype": torch.float32} | options  # whatever it was saved in
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # a head that is new is no news here
        options["revision"] = resolve_revision(place, options.get("revision"))  # all files are of one commit
        if is_adapter(place, options):
            raise ValueError(f"{name} holds an adapter and no model; merge it into its model (merge_and_unload of PEFT), and give that")
        return kind.from_pretrained(place, **options)
    except Exception as error:  # a stranger's files can fail anywhere
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"cannot open a model at {name!r} ({first}); give a folder of a finished run, or a name on the Hub") from error
    finally:
        logging.set_verbosity(verbosity)


def open_segmenter(
    name: str, classes: Sequence[str], log: Callable[[str], None] = print, **fields: Any
) -> tuple[MsclForSemanticSegmentation, bool]:
    """A segmenter for these classes from the model at `name`, and whether its classifier is new: of a pre-trained model, and of one with
    other classes or with these in another order, which is logged. fields: of its configuration. Raises ValueError as `open_model`."""
    names = dict(enumerate(classes))
    network, loaded = open_model(
        MsclForSemanticSegmentation, name, output_loading_info=True, ignore_mismatched_sizes=True, id2label=names,
        label2id={of: i for i, of in names.items()}, **fields,
    )  # fmt: skip
    for field, value in fields.items():
        setattr(network.config, field, value)  # None too, which `from_pretrained` drops
    if any(key.startswith("classifier.") for key in loaded["missing_keys"]):  # pre-trained
        return network, True
    config = open_model(MsclConfig, name)
    trained_classes = [config.id2label[i] for i in range(config.num_labels)]
    if trained_classes == list(classes):
        return network, False
    log(f"new classifier: {name} was trained on the classes {first_three(trained_classes)}; the data has {first_three(classes)}")
    if len(trained_classes) == len(classes):  # otherwise `from_pretrained` has drawn it
        renew_classifier(network)
    return network, True


def renew_classifier(network: MsclForSemanticSegmentation) -> None:
    """Draw the weights of the classifier, and of the auxiliary head's, anew."""
    for module in network.modules():
        if getattr(module, "_is_classifier", False):
            for parameter in module.parameters():
                parameter._is_hf_initialized = False  # else transformers keeps what was loaded
            network._init_weights(module)


def split_revision(name: str) -> tuple[str, str | None]:
    """A model's name and its revision (a branch, a tag or a commit) where it is NAME@REVISION; a folder is its name alone."""
    place, _, revision = (name, "", "") if Path(name).exists() else name.rpartition("@")
    return (place, revision) if place and re.fullmatch(r"[\w./-]+", revision) else (name, None)


def pinned(name: str | None) -> str | None:
    """NAME@COMMIT for a model on the Hub, so that all its files are of one commit, and a record tells which; else the name as it is."""
    if name is None or Path(name).exists():
        return name
    place, revision = split_revision(name)
    commit = getattr(resolve_revision(place, revision), "resolved", None)  # not there: whoever opens the model says why
    return f"{place}@{commit}" if commit else name


def publish(network: PreTrainedModel, out: Path, size: tuple[int, int] | None = None) -> None:
    """Write config.json, model.safetensors (float32), preprocessor_config.json, and the code that opens them, into `out`.

    size: of the image processor, see `typical_size`. Each file appears there whole, config.json last.
    """
    temporary = out / f"{UNFINISHED}model"
    shutil.rmtree(temporary, ignore_errors=True)
    network.float().save_pretrained(temporary)
    image_processor(network.config, size).save_pretrained(temporary)
    for file in sorted(temporary.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
        file.replace(out / file.name)
    temporary.rmdir()


def image_processor(config: PreTrainedConfig, size: tuple[int, int] | None = None) -> SegformerImageProcessor:
    """What makes a model's input of images of any mode. size: height and width in px that it brings every image to; None = the short side
    to the base size, as evaluation does it."""
    resize = {"size": {"shortest_edge": config.base_size}} if config.base_size else {"do_resize": False}
    if size is not None:
        resize = {"size": {"height": size[0], "width": size[1]}}
    means = {"image_mean": config.image_mean, "image_std": config.image_std}
    return SegformerImageProcessor(**resize, **means, do_convert_rgb=config.num_channels == 3)


def typical_size(data: SegmentationData | None, base_size: int | None, count: int = 32) -> tuple[int, int] | None:
    """Height and width in px that an image processor can bring all images to, so that any of them make a batch; None without data.

    The shape, of width over height the median of `count` images spread over the data, that evaluation gives the network: that of all
    images where they have one. base_size: of the short side; 0 or None = as it is.
    """
    if data is None:
        return None
    shapes = [data.read(index).image.shape[:2] for index in range(0, len(data), max(1, len(data) // count))]
    aspect = median_low(width / height for height, width in shapes)
    short = base_size or median_low(map(min, shapes))
    return round(short * max(1, 1 / aspect)), round(short * max(1, aspect))


def hub_folder() -> Path:
    """The folder `hub`, with the model card's template and the Spaces: within an installed copy, or beside the package in the sources."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "hub", package.parent / "hub") if folder.is_dir())


def draw_training(out: Path, title: str) -> None:
    """training.png from log.jsonl, if anything was logged."""
    rows = read_log(out / "log.jsonl")
    if rows:
        training_figure(rows, out / "training.png", title)


@torch.no_grad()
def draw_features(method: Method, data: SegmentationData, out: Path, count: int = 6) -> None:
    """features.png: image, mask and the last backbone map as colours (PCA)."""
    method.eval()
    size, base = method.network.config.image_size, method.network.config.base_size
    step = max(1, len(data) // count)
    samples = [data.read(i) for i in range(0, len(data), step)][:count]
    cuts = [cut(s, central_crop(s.image.shape[1::-1], size, base), size) for s in samples]
    maps = features(method, torch.stack([image for image, _ in cuts]))
    images = [displayed(image.permute(1, 2, 0).numpy()) for image, _ in cuts]
    masks = [None if mask is None else mask.numpy() for _, mask in cuts]
    feature_maps_sheet(images, masks, maps, out / "features.png", data.classes)


@functools.cache
def commit() -> str | None:
    """The commit of the source tree that runs, with "-dirty" when it was changed since; None when it is no git checkout of its own.

    A process that runs for hours has the sources of its start: it asks then (in `run.json`), and is told the same ever after.
    MSCL_HF_COMMIT says it where the tree was copied without its history, into a container or onto a node.
    """
    if os.environ.get("MSCL_HF_COMMIT"):
        return os.environ["MSCL_HF_COMMIT"]
    root = Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():  # an installed copy may lie inside another project's checkout
        return None
    words = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    found = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None

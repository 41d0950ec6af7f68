"""The configuration of every mscl_hf model. Self-contained, so that a checkpoint can carry this file as remote code."""

import json
import os
from dataclasses import dataclass, fields
from typing import Any, Literal

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .checks_mscl import check_keys, check_size, read_json
from .fields_mscl import (
    INT32,
    MOST_CHANNELS,
    MOST_CLASSES,
    MOST_PIXELS,
    black_and_white,
    class_colors,
    class_names,
    dtype,
    items,
    label_map,
    method_options,
    number,
    options,
    shown,
    strict_config,
    text,
)  # fmt: skip

# The class of the files beside this one that opens a checkpoint where mscl_hf is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_mscl.MsclConfig",
    "AutoModel": "modeling_mscl.MsclBackbone",
    "AutoBackbone": "modeling_mscl.MsclBackbone",
    "AutoModelForPreTraining": "modeling_mscl.MsclForPreTraining",
    "AutoModelForSemanticSegmentation": "modeling_mscl.MsclForSemanticSegmentation",
}
HEADS = ("global", "local", "pixel")
# Options in the field `contrast` that earlier versions saved under other names.
FORMER_NAMES = {
    "queue": "queue_size", "label_down": "label_downsampling", "reduce": "pixel_reduction",
    **{f"lambda_{head[0]}": f"{head}_weight" for head in HEADS}, **{f"tau_{head[0]}": f"{head}_temperature" for head in HEADS},
}  # fmt: skip
Integers = list[int] | tuple[int, ...] | None
Numbers = list[int | float] | tuple[int | float, ...] | None
Texts = list[str] | tuple[str, ...] | None


@strict_config
class MsclConfig(BackboneConfigMixin, PreTrainedConfig):
    """A timm backbone, a decoder, contrastive heads, and a label set.

    `mscl_hf.models.build_config` reads from timm what a backbone supports, and fills the fields. Every assignment is validated; a field of
    another type, or beyond its bounds, raises ValueError.

    backbone: timm name, with or without a pre-training tag. backbone_kwargs: keyword arguments of `timm.create_model`.
    two_towers: two backbones side by side, one for L and one for ab of the image in Lab, with their feature maps concatenated
        (`towers_mscl`). Images are RGB in [0, 1], and backbone_kwargs holds the options that halve the width.
    out_indices: tapped stages, shallow to deep; the decoder reads all, the heads the last one. out_features: the same stages by their
        names in stage_names, which are timm's; None = filled in when the network is built.
    size_multiple, fixed_size: images are resized to a multiple of the first, or to the second (height = width), in px, before the backbone.
    norm_features: whether the backbone's final normalization is applied to the last feature map.
    decoder_type: "deeplabv3", "fcn", "mla", "dpt" or "linear". decoder_rates: atrous rates of DeepLabV3.
    heads: contrastive heads of a pre-training model; None = all three.
    global_dim, local_dim, pixel_dim: embedding sizes. local_grid: S of the S x S blocks.
    pixel_grid: height to which features are resized before the pixel head; None = as they are, at most 65.
    attach: the map that the heads read. "ancestor", as in the methods that the losses come from: the backbone's last map for the global
        and the local head, the decoder's for the pixel head. "backbone" or "decoder": that one's map for all heads.
    bn_views: "joint" runs both views in one forward pass, "separate" one after the other (with batch statistics of each).
    contrast: the pre-training method and its options.
    image_size: height of the training crop in px. image_width: its width; None = square.
    base_size: short side of the image before cropping in px; 0 = native, None = image_size.
    image_range: stored values of black and white in images of more than 8 bits; None = trained on images of 8 bits.
    bands: bands of an image file that are the channels, counted from 1; None = RGB.
    label_map, reduce_labels: how the training masks were read, as a record: {stored id: class id}, 255 = ignored; whether the stored id 0
        was ignored and the others were counted from 0. class_colors: of masks of colors, {"R,G,B": class id}, 255 = ignored.
    image_mean, image_std: normalization that the backbone expects of images in [0, 1]; None = ImageNet's.
    """

    model_type = "mscl"
    labels_given = False  # whether from_pretrained was called with a label set
    _auto_class = "AutoConfig"  # saved with the code

    backbone: str | None = text("resnet18")
    backbone_kwargs: dict[str, Any] | None = options(MOST_PIXELS)
    two_towers: bool = False
    num_channels: int = number(3, 1, MOST_CHANNELS)
    _out_indices: Integers = number(None, -1024, 1023, length=1024)
    _out_features: Texts = text()
    stage_names: Texts = text()
    size_multiple: int = number(1, 1, MOST_PIXELS)
    fixed_size: int | None = number(None, 1, MOST_PIXELS)
    norm_features: bool = True
    decoder_type: str | None = text("deeplabv3")
    decoder_channels: int = number(256, 1, MOST_CHANNELS)
    decoder_rates: Integers = number(None, 1, MOST_PIXELS, length=16)
    decoder_dropout: float | int = number(0.1, 0, 1)
    heads: list[Literal["global", "local", "pixel"]] | tuple[Literal["global", "local", "pixel"], ...] | None = items(3)
    global_dim: int = number(128, 1, MOST_CHANNELS)
    local_dim: int = number(128, 1, MOST_CHANNELS)
    pixel_dim: int = number(256, 1, MOST_CHANNELS)
    local_grid: int = number(7, 1, MOST_PIXELS)
    local_layers: int = number(1, 1, 64)
    pixel_layers: int = number(3, 1, 64)
    pixel_bn: bool = True
    pixel_grid: int | None = number(None, 1, MOST_PIXELS)
    attach: Literal["ancestor", "backbone", "decoder"] = "ancestor"
    bn_views: Literal["joint", "separate"] = "joint"
    contrast: dict[str, Any] | None = method_options()
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float | int = number(0.4, 0, 10**6)
    semantic_loss_ignore_index: int = number(255, -INT32, INT32)
    image_size: int = number(224, 1, MOST_PIXELS)
    image_width: int | None = number(None, 1, MOST_PIXELS)
    base_size: int | None = number(None, 0, MOST_PIXELS)
    image_range: Integers = black_and_white()
    bands: Integers = number(None, 1, 65_535, length=1024)
    label_map: dict[int | str, int] | None = label_map()
    reduce_labels: bool = False
    class_colors: dict[str, int] | None = class_colors()
    image_mean: Numbers = number(None, -(10**6), 10**6, length=1024)
    image_std: Numbers = number(None, 1e-9, 10**6, length=1024)
    # Fields of PreTrainedConfig, whose own types `strict` does not check.
    architectures: Texts = text()
    id2label: dict | None = class_names()
    label2id: dict | None = class_names()
    dtype: Any = dtype()
    return_dict: bool | None = True
    output_hidden_states: bool | None = False

    def __post_init__(self, **kwargs):
        others = {field.name: kwargs[field.name] for field in fields(OtherFields) if field.name in kwargs}
        OtherFields(**others)
        self.decoder_rates = [6, 12, 18] if self.decoder_rates is None else self.decoder_rates
        self.heads = HEADS if self.heads is None else self.heads
        self.base_size = self.image_size if self.base_size is None else self.base_size
        self.image_mean = self.image_mean or [0.485, 0.456, 0.406]
        self.image_std = self.image_std or [0.229, 0.224, 0.225]
        self.label_map = self.label_map and {str(stored): class_id for stored, class_id in self.label_map.items()}
        self.backbone_kwargs, self.contrast = self.backbone_kwargs or {}, self.contrast or {}
        for field in fields(self):  # no list or dictionary of the caller's, and the same types as in a file
            if isinstance(value := getattr(self, field.name), (list, tuple, dict)):
                setattr(self, field.name, dict(value) if isinstance(value, dict) else list(value))
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self.set_output_features_output_indices(out_features, [-2, -1] if out_features is None and out_indices is None else out_indices)
        self.label2id = _with_label2id({"id2label": self.id2label, "label2id": self.label2id})["label2id"]
        super().__post_init__(**kwargs | {"auto_map": dict(AUTO_MAP)})

    def validate_image_statistics(self) -> None:
        """Raise ValueError unless mean and standard deviation have a value for each channel."""
        for name in ("image_mean", "image_std"):
            count = len(getattr(self, name))
            if count not in (self.num_channels, 3):  # 3: the default of models with another number of channels
                raise ValueError(f"{name} has {count} values; expected {self.num_channels}. Give a value for each channel.")

    def validate_bands(self) -> None:
        """Raise ValueError unless there is a band for each channel."""
        if self.bands is not None and len(self.bands) != self.num_channels:
            raise ValueError(f"bands is {shown(self.bands)}; expected {self.num_channels} bands. Give one for each channel.")

    def set_output_features_output_indices(self, out_features: list[str] | None, out_indices: list[int] | None) -> None:
        """As in transformers; before the stages have names, the choice is kept and checked when they get them."""
        if self.stage_names is None:
            self._out_features, self._out_indices = out_features, out_indices
        elif not self.stage_names:
            raise ValueError("stage_names is []; expected the name of at least one stage. Leave it out.")
        else:
            super().set_output_features_output_indices(out_features, out_indices)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict:
        """As in transformers; a file that is too large raises ValueError."""
        return cls._decode_special_floats(read_json(json_file))

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers; names of earlier versions are converted, and unknown fields raise ValueError.

        label2id follows from an id2label alone, and `labels_given` records whether kwargs have a label set.
        """
        config_dict = current_names(config_dict)
        check_keys(config_dict, _own_fields())
        result = super().from_dict(config_dict, **_with_label2id(kwargs))
        config = result[0] if isinstance(result, tuple) else result
        config.labels_given = bool(kwargs.get("id2label") or kwargs.get("num_labels"))
        return result

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in transformers; a configuration that from_pretrained would reject raises ValueError."""
        self.check_reopens()
        super().save_pretrained(save_directory, *args, **kwargs)

    def check_reopens(self) -> None:
        """Raise ValueError where from_pretrained would reject this configuration."""
        check_keys(self.to_diff_dict(), _own_fields())
        json_text = self.to_json_string()
        check_size("config.json", len(json_text.encode()))
        self.from_dict(self._decode_special_floats(json.loads(json_text)))

    def to_dict(self) -> dict:
        """Return the fields of config.json."""
        return {key: value for key, value in super().to_dict().items() if key != "labels_given"}

    def name_stages(self, names: list[str]) -> None:
        """Fill in timm's names of the stages."""
        if self.stage_names is None:
            self.stage_names = list(names)
            self.set_output_features_output_indices(self._out_features, self._out_indices)


@strict_config
@dataclass(kw_only=True)
class OtherFields:
    """Types of what PreTrainedConfig accepts beside its fields."""

    num_labels: int = number(2, 1, MOST_CLASSES)
    torch_dtype: Any = dtype()
    output_attentions: bool | None = None
    custom_pipelines: dict[str, Any] = options(INT32, dict)


def current_names(config: dict) -> dict:
    """Convert the fields of a config.json of earlier versions; values of a wrong type are left to the validation."""
    config, names = dict(config), {head[0]: head for head in HEADS}
    if "decoder" in config:
        config["decoder_type"] = config.pop("decoder")
    if isinstance(heads := config.get("heads"), (list, tuple)):
        config["heads"] = [names.get(head, head) if isinstance(head, str) else head for head in heads]
    if isinstance(config.get("contrast"), dict):
        config["contrast"] = contrast = {FORMER_NAMES.get(key, key): value for key, value in config["contrast"].items()}
        if isinstance(contrast.get("losses"), str):
            contrast["losses"] = "+".join(names.get(part, part) for part in contrast["losses"].split("+"))
        if contrast.get("label_downsampling") == "centre":
            contrast["label_downsampling"] = "center"
    return config


def _own_fields() -> set[str]:
    return {field.name.lstrip("_") for field in fields(MsclConfig)}


def _with_label2id(options: dict) -> dict:
    """Return the options with a label2id that follows from id2label, unless it is among them."""
    names = options.get("id2label")
    if not names or not isinstance(names, dict):  # another type is rejected when it is assigned
        return options
    known = [str(index) for index in range(len(names))]
    if sorted(map(str, names)) != sorted(known) or len({name for name in names.values() if isinstance(name, str)}) < len(names):
        raise ValueError(f"id2label is {shown(names)}; expected a name of its own for every class 0, 1, 2, .... Correct the names.")
    return {"label2id": {name: int(index) for index, name in names.items()}} | {k: v for k, v in options.items() if v is not None}

"""The configuration of every mscl_hf model: self-contained, so that a checkpoint can carry it as remote code."""

import inspect
import json
import os

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .checks_mscl import check_fields, check_keys, check_size, read_json

# Which class of the files beside this one opens a checkpoint where mscl_hf is not installed.
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


class MsclConfig(BackboneConfigMixin, PreTrainedConfig):
    """What a network is: a timm backbone, a decoder, contrastive heads, a label set.

    `MsclConfig` stores decisions, it does not take them: `mscl_hf.models.backbones.build_config` asks timm what a
    backbone supports and fills the fields below.

    backbone: a timm name, with or without a pre-training tag.
    backbone_kwargs: passed to `timm.create_model` (e.g. output_stride, dynamic_img_size).
    two_towers: two such models side by side, one for L and one for ab of the image in Lab, their maps concatenated; images come
        as RGB in 0..1 (`towers_mscl`). backbone_kwargs then hold what halves the width.
    out_indices: the tapped feature levels, shallow to deep; the decoder reads them, the last one feeds the heads. out_features: the same
        by their names, of stage_names, which are timm's; None = the network fills them in.
    size_multiple, fixed_size: images are resized to a multiple of the first, or to the second (height = width), in px,
        just before the backbone, when its family cannot take every size.
    norm_features: whether the last tap lies behind the backbone's final normalisation, where it has one.
    decoder_type: "deeplabv3", "fcn" or "mla"; decoder_rates are the atrous rates of DeepLabV3.
    heads: the contrastive heads of a pre-training model, of "global", "local", "pixel"; None = all three.
    global_dim, local_dim, pixel_dim: embedding sizes; local_grid: S of the S x S blocks.
    pixel_grid: height to which features are resized (up or down) before the pixel head; None = as they are, at most 65.
    attach: where the heads sit, "ancestor", "backbone" or "decoder".
    bn_views: "joint" runs both views in one forward, "separate" one after the other (batch statistics of its own each).
    contrast: the pre-training method and its options: for mscl those of `mscl_hf.losses.MultiScaleLoss`; empty for the defaults.
    image_size: height of the training crop in px; image_width: its width, None = square;
        base_size: short side of the image before cropping in px, 0 = native.
    image_range: the stored values that are black and white in images of more than 8 bits, [low, high]; None = trained on images of 8 bits.
    label_map, reduce_labels: how the masks that the classifier was trained on were read. {stored id: class id}, 255 = ignored; whether the
        stored id 0 was ignored and the others counted from 0. A record: the network does not depend on them.
    image_mean, image_std: of the images in 0..1 that the backbone expects (timm's own; ImageNet's where unknown).

    Raises ValueError for a field of another type or beyond the bounds of `checks_mscl`.
    """

    model_type = "mscl"
    labels_given = False
    _auto_class = "AutoConfig"  # saved with the code

    def __init__(
        self,
        backbone: str = "resnet18",
        backbone_kwargs: dict | None = None,
        two_towers: bool = False,
        num_channels: int = 3,
        out_indices: list[int] | None = None,
        out_features: list[str] | None = None,
        stage_names: list[str] | None = None,
        size_multiple: int = 1,
        fixed_size: int | None = None,
        norm_features: bool = True,
        decoder_type: str = "deeplabv3",
        decoder_channels: int = 256,
        decoder_rates: list[int] | None = None,
        decoder_dropout: float = 0.1,
        heads: list[str] | None = None,
        global_dim: int = 128,
        local_dim: int = 128,
        pixel_dim: int = 256,
        local_grid: int = 7,
        local_layers: int = 1,
        pixel_layers: int = 3,
        pixel_bn: bool = True,
        pixel_grid: int | None = None,
        attach: str = "ancestor",
        bn_views: str = "joint",
        contrast: dict | None = None,
        use_auxiliary_head: bool = True,
        auxiliary_loss_weight: float = 0.4,
        semantic_loss_ignore_index: int = 255,
        image_size: int = 224,
        image_width: int | None = None,
        base_size: int | None = None,
        image_range: list[int] | None = None,
        label_map: dict[str, int] | None = None,
        reduce_labels: bool = False,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs,
    ):
        decoder_type = kwargs.pop("decoder", decoder_type)  # its name in earlier versions; transformers takes it for a sub-configuration
        heads, contrast = current_names(heads, contrast)
        check_fields({name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")} | kwargs)
        self.backbone = backbone
        self.backbone_kwargs = dict(backbone_kwargs or {})
        self.two_towers = two_towers
        self.num_channels = num_channels
        self.stage_names = list(stage_names) if stage_names is not None else None
        if out_indices is None and out_features is None:
            out_indices = [-2, -1]
        self.set_output_features_output_indices(out_features, out_indices)
        self.size_multiple = size_multiple
        self.fixed_size = fixed_size
        self.norm_features = norm_features
        self.decoder_type = decoder_type
        self.decoder_channels = decoder_channels
        self.decoder_rates = list(decoder_rates) if decoder_rates is not None else [6, 12, 18]
        self.decoder_dropout = decoder_dropout
        self.heads = list(heads) if heads is not None else list(HEADS)
        self.global_dim = global_dim
        self.local_dim = local_dim
        self.pixel_dim = pixel_dim
        self.local_grid = local_grid
        self.local_layers = local_layers
        self.pixel_layers = pixel_layers
        self.pixel_bn = pixel_bn
        self.pixel_grid = pixel_grid
        self.attach = attach
        self.bn_views = bn_views
        self.contrast = dict(contrast or {})
        self.use_auxiliary_head = use_auxiliary_head
        self.auxiliary_loss_weight = auxiliary_loss_weight
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.image_size = image_size
        self.image_width = image_width
        self.base_size = image_size if base_size is None else base_size
        self.image_range = None if image_range is None else list(image_range)
        self.label_map = None if label_map is None else {str(stored): train for stored, train in label_map.items()}
        self.reduce_labels = reduce_labels
        self.image_mean = list(image_mean or (0.485, 0.456, 0.406))
        self.image_std = list(image_std or (0.229, 0.224, 0.225))
        super().__init__(**_with_label2id(kwargs) | {"auto_map": dict(AUTO_MAP)})

    def set_output_features_output_indices(self, out_features: list[str] | None, out_indices: list[int] | None) -> None:
        """As in transformers; before the stages have names, the choice is kept and checked when they get them."""
        if self.stage_names is None:
            self._out_features, self._out_indices = out_features, None if out_indices is None else list(out_indices)
        elif not self.stage_names:
            raise ValueError("stage_names is []; a network has at least one stage")
        else:
            super().set_output_features_output_indices(out_features, out_indices)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict:
        """As in transformers, within bounds."""
        return cls._decode_special_floats(read_json(json_file))

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers; label2id follows an id2label that is given alone, and it is remembered whether a label set was given. Unknown
        fields are refused."""
        check_keys(config_dict, _own_fields() | {"decoder"})  # which is what earlier versions called decoder_type
        check_fields({name: kwargs[name] for name in ("id2label", "num_labels") if name in kwargs})
        given = bool(kwargs.get("id2label") or kwargs.get("num_labels"))
        found = super().from_dict(config_dict, **_with_label2id(kwargs))
        (found[0] if isinstance(found, tuple) else found).labels_given = given
        return found

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in transformers; a configuration that from_pretrained would reject raises ValueError instead."""
        self.check_reopens()
        super().save_pretrained(save_directory, *args, **kwargs)

    def check_reopens(self) -> None:
        """ValueError where from_pretrained would reject this configuration once it is saved."""
        check_keys(self.to_diff_dict(), _own_fields())
        text = self.to_json_string()
        check_size("config.json", len(text.encode()))
        self.from_dict(self._decode_special_floats(json.loads(text)))

    def to_dict(self) -> dict:
        """What config.json holds."""
        return {key: value for key, value in super().to_dict().items() if key != "labels_given"}

    def name_stages(self, names: list[str]) -> None:
        """Give the stages the names that timm has for them."""
        if self.stage_names is None:
            self.stage_names = list(names)
            self.set_output_features_output_indices(self._out_features, self._out_indices)


def current_names(heads: list[str] | None, contrast: dict | None) -> tuple[list[str] | None, dict | None]:
    """The fields `heads` and `contrast` as this version names their content; values of a wrong type are left to `check_fields`."""
    names = {head[0]: head for head in HEADS}
    if isinstance(heads, (list, tuple)):
        heads = [names.get(head, head) if isinstance(head, str) else head for head in heads]
    if isinstance(contrast, dict):
        contrast = {FORMER_NAMES.get(key, key): value for key, value in contrast.items()}
        if isinstance(contrast.get("losses"), str):
            contrast["losses"] = "+".join(names.get(part, part) for part in contrast["losses"].split("+"))
        if contrast.get("label_downsampling") == "centre":
            contrast["label_downsampling"] = "center"
    return heads, contrast


def _own_fields() -> set[str]:
    return set(inspect.signature(MsclConfig.__init__).parameters)


def _with_label2id(fields: dict) -> dict:
    """The fields with a label2id that follows from id2label, where only that is given."""
    names = fields.get("id2label")
    if not names:
        return fields
    known = [str(index) for index in range(len(names))]
    if sorted(map(str, names)) != sorted(known) or len({name for name in names.values() if isinstance(name, str)}) < len(names):
        raise ValueError(f"id2label is {str(names)[:100]}; give every class of 0, 1, 2, ... a name of its own")
    return {"label2id": {name: int(index) for index, name in names.items()}} | {k: v for k, v in fields.items() if v is not None}

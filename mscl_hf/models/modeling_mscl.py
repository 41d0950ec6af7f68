"""The models: a timm backbone, a decoder, and either contrastive heads or a classifier.

Self-contained (torch, timm, transformers and sibling files *_mscl), so that a checkpoint can carry this file as remote code.
Letters: B batch, C channels, h w feature map, H W image, K classes, S blocks of a side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.utils import ModelOutput

from .base_mscl import MsclPreTrainedModel
from .blocks_mscl import accept_indices, update_statistics_once
from .configuration_mscl import MsclConfig
from .cross_entropy_mscl import mean_cross_entropy
from .decoders_mscl import DECODERS, conv_bn_relu
from .heads_mscl import GlobalHead, LocalHead, PixelHead
from .timm_mscl import build_timm_model, check_architecture, feature_levels, shared_weights, stage_names


class MsclBackbone(BackboneMixin, MsclPreTrainedModel):
    """A timm model, or two towers of them, with timm's keys, tapped at `config.out_indices`.

    As a backbone of other decoders (`AutoBackbone`) it has `stage_names`, `out_features` and `channels` as in transformers.
    """

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", *(rf"^{head}\." for head in MsclPreTrainedModel._heads)]
    has_attentions = False

    def __init__(self, config: MsclConfig):
        check_architecture(config)
        timm_model = build_timm_model(config)
        levels = feature_levels(timm_model)
        config.name_stages(stage_names(levels))
        super().__init__(config)
        self.timm_model = accept_indices(timm_model)
        self.num_features = [level["num_chs"] for level in levels]  # of every stage, tapped or not
        for module in self.timm_model.modules():
            module._is_timm = True
            if isinstance(module, PatchEmbed) and all(config.size_multiple % side == 0 for side in module.patch_size):
                module.img_size = None  # timm's assertions on sides format them, which binds a compiled graph to that size
        self._interpolates_positions = any(name.endswith("pos_embed") for name, _ in self.timm_model.named_parameters())
        self._tied_weights_keys = shared_weights(self.timm_model, "timm_model.")
        self._no_split_modules = [type(self.timm_model).__name__]  # maps that are added or concatenated must be on one device
        self.gradient_checkpointing = False
        self._timm_is_uninitialized = any(parameter.is_meta for parameter in timm_model.parameters())
        self.post_init()

    def _initialize_weights(self, module: nn.Module, *args) -> None:
        if module is self:  # transformers skips _init_weights for modules without parameters of their own
            self._init_timm_weights()
        super()._initialize_weights(module, *args)

    @torch.no_grad()
    def _init_timm_weights(self) -> None:
        """Initialize the weights of a backbone that was built on the meta device as timm does; loaded weights are kept."""
        if not self._timm_is_uninitialized or all(parameter.is_meta for parameter in self.timm_model.parameters()):
            return
        saved = self.timm_model.state_dict(keep_vars=True)
        new = {name for name, tensor in saved.items() if not (tensor.is_meta or getattr(tensor, "_is_hf_initialized", False))}
        if not new:
            return
        with torch.device("cpu"):
            values = build_timm_model(self.config).state_dict()
        for name in new:
            value, tensor = values[name].to(saved[name].device), saved[name]
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements)  # values of the mesh's first process
            tensor.copy_(value)
        self._timm_is_uninitialized = False

    @property
    def taps(self) -> list[int]:
        """Return the indices of the tapped stages, shallow to deep."""
        return [index % len(self.stage_names) for index in self.out_indices]

    @property
    def strides(self) -> list[int]:
        """Return the nominal stride in px of each tapped map."""
        return [feature_levels(self.timm_model)[index]["reduction"] for index in self.taps]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BackboneOutput | tuple:
        """Return the tapped feature maps, a tuple of (B, C_i, h_i, w_i), of normalized pixel_values (B, C, H, W).

        output_hidden_states: also return the maps of all stages, in the order of `stage_names`.
        """
        self._check_keywords(kwargs)
        if self.training and not torch.compiler.is_compiling():
            update_statistics_once(self.timm_model)
        pixel_values = self._fit_size(pixel_values)
        all_stages = _or_default(output_hidden_states, self.config.output_hidden_states)
        indices = list(range(len(self.stage_names))) if all_stages else self.taps
        maps = self.timm_model(
            pixel_values, indices=indices, norm=self.config.norm_features, output_fmt="NCHW", intermediates_only=True
        )
        tapped = tuple(maps[index] for index in self.taps) if all_stages else tuple(maps)
        out = BackboneOutput(feature_maps=tapped, hidden_states=tuple(maps) if all_stages else None)
        return out if _or_default(return_dict, self.config.return_dict) else out.to_tuple()

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the nearest height and width in px that the backbone accepts for an image of this size."""
        multiple = self.config.size_multiple
        if self.config.fixed_size is not None:
            return self.config.fixed_size, self.config.fixed_size
        if multiple == 1:
            return size
        # Integer arithmetic that rounds half to even, as round() does: in an exported graph the sides are symbols.
        patches = ((2 * side + multiple - 1 + side // multiple % 2) // (2 * multiple) for side in size)
        at_least_one = max if torch.jit.is_tracing() else torch.sym_max  # torch.jit.trace passes sides as tensors
        return tuple(at_least_one(1, count) * multiple for count in patches)

    def _fit_size(self, pixel_values: Tensor) -> Tensor:
        """Resize images to a size that the backbone accepts. Unlike padding, this keeps position i at (i + 0.5) / h."""
        size = tuple(pixel_values.shape[-2:])
        input_size = self.input_size(size)
        if self._interpolates_positions and torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled():
            # Formatting a side fixes it, so that there is a graph for each size: torch cannot trace bicubic's gradient for symbols.
            size = tuple(int(f"{side}") for side in size)
        takes_any_size = self.config.size_multiple == 1 and self.config.fixed_size is None
        is_recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # comparing would bind the graph to the example's size
        if takes_any_size or not is_recorded and input_size == size:
            return pixel_values
        return F.interpolate(pixel_values, size=input_size, mode="bilinear", align_corners=False, antialias=True)


def _decoder(channels: list[int], strides: list[int], config: MsclConfig) -> nn.Module:
    if config.decoder_type not in DECODERS:
        raise ValueError(f"decoder_type is {config.decoder_type!r}; expected {', '.join(DECODERS)}. Choose one of them.")
    return DECODERS[config.decoder_type](channels, strides, config)


def _or_default(value: bool | None, default: bool) -> bool:
    return default if value is None else value


@dataclass
class MsclPreTrainingOutput(ModelOutput):
    """Output of `MsclForPreTraining`.

    global_embeds (B, E_g), local_embeds (B, S*S, E_l), pixel_embeds (B', E_p, h, w): embeddings of unit length in float32; None for heads
    that were not computed. B' is the number of images of the pixel head.
    feature_maps: the tapped maps. hidden_states: the maps of all stages with output_hidden_states, else None.
    """

    global_embeds: Tensor | None = None
    local_embeds: Tensor | None = None
    pixel_embeds: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class MsclForPreTraining(MsclPreTrainedModel):
    """Backbone, decoder and the contrastive heads of `config.heads`. Backbone and decoder are transferred to segmentation."""

    _auto_class = "AutoModelForPreTraining"
    _keys_to_ignore_on_load_unexpected = [rf"^{head}\." for head in MsclPreTrainedModel._heads]

    def __init__(self, config: MsclConfig):
        super().__init__(config)
        self.backbone = MsclBackbone(config)
        channels = self.backbone.channels
        self.decoder = _decoder(channels, self.backbone.strides, config)
        self._no_split_modules = [type(self.decoder).__name__]
        image_channels = config.decoder_channels if config.attach == "decoder" else channels[-1]
        pixel_channels = channels[-1] if config.attach == "backbone" else config.decoder_channels
        self.global_head = self.local_head = self.pixel_head = None
        with torch.random.fork_rng(devices=[]):  # the initial backbone and decoder do not depend on the heads
            if "global" in config.heads:
                self.global_head = GlobalHead(image_channels, config.global_dim)
            if "local" in config.heads:
                self.local_head = LocalHead(image_channels, config.local_dim, config.local_grid, config.local_layers)
            if "pixel" in config.heads:
                self.pixel_head = PixelHead(pixel_channels, config.pixel_dim, config.pixel_layers, config.pixel_bn)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        heads: tuple[str, ...] | None = None,
        boxes: Tensor | None = None,
        pixel_images: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MsclPreTrainingOutput | tuple:
        """Return the embeddings of normalized pixel_values (B, C, H, W).

        heads: heads to compute, of those in `config.heads`; None = all. boxes (B, 4): boxes of the local blocks, see `LocalHead`.
        pixel_images: indices of the images for the pixel head (those with labels); None = all.
        output_hidden_states: also return the maps of all stages.
        """
        self._check_keywords(kwargs)
        heads = self.config.heads if heads is None else heads
        if absent := sorted(set(heads) - set(self.config.heads)):
            raise ValueError(f"heads has {absent}; expected some of {self.config.heads}. Name them in MsclConfig.heads.")
        out = self.backbone(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        maps, attach = out.feature_maps, self.config.attach
        decoded = self.decoder(list(maps)) if attach == "decoder" else None
        image_map = decoded if attach == "decoder" else maps[-1]
        result = MsclPreTrainingOutput(
            global_embeds=self.global_head(image_map) if "global" in heads else None,
            local_embeds=self.local_head(image_map, boxes) if "local" in heads else None,
            pixel_embeds=self._pixel_embeds(maps, decoded, pixel_images) if "pixel" in heads else None,
            feature_maps=maps,
            hidden_states=out.hidden_states,
        )
        return result if _or_default(return_dict, self.config.return_dict) else result.to_tuple()

    def _pixel_embeds(self, maps: tuple[Tensor, ...], decoded: Tensor | None, images: Tensor | None) -> Tensor:
        def select(x: Tensor) -> Tensor:
            return x if images is None else x[images]

        if self.config.attach == "backbone":
            features = select(maps[-1])
        elif decoded is None:  # "ancestor": the decoder runs for the selected images only
            features = self.decoder([select(x) for x in maps])
        else:
            features = select(decoded)
        grid = self.config.pixel_grid
        height, width = features.shape[-2:]
        # 65: DeepLab's map for crops of 513 px at stride 8
        size = [grid, max(1, round(grid * width / height))] if grid else [min(side, 65) for side in (height, width)]
        if size != list(features.shape[-2:]):
            features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return self.pixel_head(features)


class MsclForSemanticSegmentation(MsclPreTrainedModel):
    """Backbone, decoder and a 1x1 classifier, with an auxiliary FCN head on the tap before the last while training."""

    _auto_class = "AutoModelForSemanticSegmentation"
    # The auxiliary head serves training only, and may be ignored when a checkpoint is loaded.
    _keys_to_ignore_on_load_unexpected = [rf"^{head}\." for head in ("auxiliary_head", "global_head", "local_head", "pixel_head")]

    def __init__(self, config: MsclConfig):
        if config.num_labels < 2:
            raise ValueError(f"num_labels is {config.num_labels}; expected at least 2. Count the background as a class.")
        _support_pipelines()
        super().__init__(config)
        self.backbone = MsclBackbone(config)
        channels = self.backbone.channels
        self.decoder = _decoder(channels, self.backbone.strides, config)
        self._no_split_modules = [type(self.decoder).__name__]
        self.dropout = nn.Dropout2d(config.decoder_dropout)
        self.classifier = _classifier(config.decoder_channels, config.num_labels)
        self.auxiliary_head = None
        if config.use_auxiliary_head and len(channels) > 1:
            hidden = max(channels[-2] // 4, 16)
            self.auxiliary_head = nn.Sequential(
                conv_bn_relu(channels[-2], hidden, 3), _classifier(hidden, config.num_labels)
            )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput | tuple:
        """Return logits (B, K, h, w) of normalized pixel_values (B, C, H, W), and with labels (B, H, W) also the loss.

        The loss is cross-entropy of logits resized to the labels, plus `auxiliary_loss_weight` times that of the auxiliary head; pixels
        labelled 255 are ignored. output_hidden_states: also return the maps of all stages of the backbone.
        """
        self._check_keywords(kwargs)
        out = self.backbone(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits, auxiliary = self._classify(out.feature_maps, with_auxiliary=labels is not None)
        loss = None if labels is None else self.cross_entropy(logits, labels)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary_loss_weight * self.cross_entropy(auxiliary, labels)
        result = SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)
        return result if _or_default(return_dict, self.config.return_dict) else result.to_tuple()

    def both_logits(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, K, h, w) of the classifier, and of the auxiliary head or None."""
        return self._classify(self.backbone(pixel_values, return_dict=True).feature_maps, with_auxiliary=True)

    def _classify(self, maps: tuple[Tensor, ...], with_auxiliary: bool) -> tuple[Tensor, Tensor | None]:
        logits = self.classifier(self.dropout(self.decoder(list(maps)))).float()
        if self.auxiliary_head is None or not with_auxiliary:
            return logits, None
        return logits, self.auxiliary_head(maps[-2]).float()

    def cross_entropy(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of logits (B, K, h, w), resized to the labels (B, H, W), see `mean_cross_entropy`."""
        return mean_cross_entropy(logits, labels, class_weights, self.config.semantic_loss_ignore_index)


def _support_pipelines() -> None:
    """Enter the class where the image-segmentation pipeline looks before it reports a model as unsupported."""
    # Imported here, because mscl_hf imports this file in turn when the Auto classes are imported.
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["mscl"] = "MsclForSemanticSegmentation"


def _classifier(channels: int, num_labels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_labels, 1)
    layer._is_classifier = True
    return layer

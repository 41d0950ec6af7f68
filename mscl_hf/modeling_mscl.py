"""The networks: a timm backbone, a decoder, and either contrastive heads or a classifier.

Self-contained (torch, timm, transformers and its three sibling files), so that a checkpoint can carry these files as remote
code and load where mscl_hf is not installed. Letters: B batch, C channels, h w feature grid, H W image, K classes, S blocks.
"""

from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.utils import ModelOutput

from .configuration_mscl import MsclConfig
from .decoders_mscl import DECODERS, conv_bn_relu
from .towers_mscl import TwoTowers


class MsclPreTrainedModel(PreTrainedModel):
    """What all mscl_hf models share: how weights start, and that none of them goes missing silently."""

    config_class = MsclConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # timm's attention calls torch's scaled_dot_product_attention by itself
    accepts_loss_kwargs = False
    model_tags = ["timm", "mscl"]
    # What a caller may leave out of a checkpoint: heads of another stage. Everything else must be there.
    _may_be_new = ("classifier.", "auxiliary_head.", "global_head.", "local_head.", "pixel_head.")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if getattr(module, "_is_timm", False):
            # timm has initialised its weights. Buffers outside the checkpoint are lost when the model is built on the
            # meta device, as from_pretrained does, and must be computed again.
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        elif isinstance(module, nn.Conv2d):
            is_classifier = getattr(module, "_is_classifier", False)
            init.normal_(module.weight, std=0.01) if is_classifier else init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu"
            )
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func=None, **options) -> None:
        for module in self.modules():
            if isinstance(module, MsclBackbone):
                module.timm_model.set_grad_checkpointing(enable)
                module.gradient_checkpointing = enable

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; a checkpoint without all backbone and decoder weights raises instead of training on noise."""
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        missing = sorted(key for key in info["missing_keys"] if not key.startswith(cls._may_be_new))
        if missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} weights of {cls.__name__} (first: {missing[0]}); "
                f"it was made for another backbone or decoder, load it with the config.json it was saved with"
            )
        # Tensors lie in memory as in the file, and CPU kernels round by alignment: outputs would differ in the last bit.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        return (model, info) if output_loading_info else model


class MsclBackbone(MsclPreTrainedModel):
    """A timm model, or two towers of them, un-rewritten (the keys stay timm's), tapped at `config.out_indices`."""

    def __init__(self, config: MsclConfig):
        super().__init__(config)
        if config.two_towers:
            self.timm_model = TwoTowers(config.backbone, **config.backbone_kwargs)
        else:
            self.timm_model = timm.create_model(
                config.backbone, pretrained=False, num_classes=0, in_chans=config.num_channels, **config.backbone_kwargs
            )
        for module in self.timm_model.modules():
            module._is_timm = True
        self._tied_weights_keys = _shared_weights(self.timm_model, "timm_model.")
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def taps(self) -> list[int]:
        depth = len(self.timm_model.feature_info)
        return [index % depth for index in self.config.out_indices]

    @property
    def channels(self) -> list[int]:
        """Channels of each tapped map."""
        return [_stage(self.timm_model, index)["num_chs"] for index in self.taps]

    @property
    def strides(self) -> list[int]:
        """Nominal stride in px of each tapped map."""
        return [_stage(self.timm_model, index)["reduction"] for index in self.taps]

    def forward(self, pixel_values: Tensor, **kwargs) -> BackboneOutput:
        """pixel_values (B, C, H, W), normalised as the configuration says -> feature_maps: a tuple of (B, C_i, h_i, w_i)."""
        pixel_values = self._fit_size(pixel_values)
        maps = self.timm_model.forward_intermediates(
            pixel_values, indices=self.taps, norm=self.config.norm_features, output_fmt="NCHW", intermediates_only=True
        )
        return BackboneOutput(feature_maps=tuple(maps))

    def _fit_size(self, pixel_values: Tensor) -> Tensor:
        """Resize to the nearest size that the family accepts; resizing, unlike padding, keeps cell i at (i + 0.5) / h."""
        size = tuple(pixel_values.shape[-2:])
        if self.config.fixed_size is not None:
            wanted = (self.config.fixed_size, self.config.fixed_size)
        else:
            multiple = self.config.size_multiple
            wanted = tuple(max(multiple, round(side / multiple) * multiple) for side in size)
        if wanted == size:
            return pixel_values
        return F.interpolate(pixel_values, size=wanted, mode="bilinear", align_corners=False, antialias=True)


def _shared_weights(module: nn.Module, prefix: str) -> dict[str, str]:
    """Names of weights that a module holds twice (CoaT does) -> the name under which they are saved."""
    first: dict[int, str] = {}
    names = [(id(p), prefix + name) for name, p in module.named_parameters(remove_duplicate=False)]
    return {name: first[key] for key, name in names if first.setdefault(key, name) != name}


def _stage(timm_model: nn.Module, index: int) -> dict:
    info = timm_model.feature_info
    return (info.info if hasattr(info, "info") else info)[index]


class GlobalHead(nn.Module):
    """Global average pooling and two fully connected layers; (B, C, h, w) -> unit (B, E)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, dim))

    def forward(self, features: Tensor) -> Tensor:
        return unit(self.layers(features.mean(dim=(2, 3))))


class LocalHead(nn.Module):
    """S x S blocks and 1x1 convolutions; (B, C, h, w) -> unit (B, S*S, E).

    Without boxes a block is the average over its part of the map (the paper). With boxes (B, 4) = x0, y0, x1, y1 in 0..1 of
    the map's sides, the S x S positions lie at the cell centres of the box; x0 > x1 walks it from right to left (a flip).
    S is at most the map's side.
    """

    def __init__(self, channels: int, dim: int, grid: int, layers: int):
        super().__init__()
        self.grid = grid
        hidden = [nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True)] * (layers - 1)
        self.layers = nn.Sequential(*hidden, nn.Conv2d(channels, dim, 1))

    def forward(self, features: Tensor, boxes: Tensor | None = None) -> Tensor:
        if boxes is None:
            sides = [min(self.grid, side) for side in features.shape[-2:]]
            blocks = F.adaptive_avg_pool2d(features, sides)
        else:
            blocks = self._sample(features, boxes, min(self.grid, *features.shape[-2:]))
        return unit(self.layers(blocks).flatten(2).transpose(1, 2))

    def _sample(self, features: Tensor, boxes: Tensor, grid: int) -> Tensor:
        centres = (torch.arange(grid, device=boxes.device, dtype=boxes.dtype) + 0.5) / grid  # (S,)
        x = boxes[:, 0:1] + (boxes[:, 2:3] - boxes[:, 0:1]) * centres  # (B, S)
        y = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * centres
        x, y = x[:, None, :].expand(-1, grid, -1), y[:, :, None].expand(-1, -1, grid)
        where = torch.stack([x, y], dim=-1) * 2 - 1
        return F.grid_sample(features, where.to(features.dtype), align_corners=False, padding_mode="border")


class PixelHead(nn.Module):
    """1x1 convolutions, BatchNorm and ReLU between them (Zhao et al., ICCV 2021); (B, C, h, w) -> unit (B, E, h, w)."""

    def __init__(self, channels: int, dim: int, layers: int, batch_norm: bool, hidden: int = 256):
        super().__init__()
        stack, width = [], channels
        for _ in range(layers - 1):
            stack.append(
                conv_bn_relu(width, hidden)
                if batch_norm
                else nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True))
            )
            width = hidden
        self.layers = nn.Sequential(*stack, nn.Conv2d(width, dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        return unit(self.layers(features))


def unit(x: Tensor) -> Tensor:
    """Unit length over the channel axis (1), or over the last one for vectors; always in float32, or float64."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1 if x.dim() == 4 else -1, eps=1e-12)


@dataclass
class MsclPreTrainingOutput(ModelOutput):
    """global_embeds (B, E_g), local_embeds (B, S*S, E_l), pixel_embeds (B', E_p, h, w): unit length, float32.

    None where a head was not asked for. B' is the number of images given to the pixel head. feature_maps are the taps.
    """

    global_embeds: Tensor | None = None
    local_embeds: Tensor | None = None
    pixel_embeds: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None


class MsclForPreTraining(MsclPreTrainedModel):
    """Backbone, decoder and the contrastive heads of `config.heads`; what is transferred are the backbone and the decoder."""

    _keys_to_ignore_on_load_unexpected = [
        r"^classifier\.", r"^auxiliary_head\.", r"^global_head\.", r"^local_head\.", r"^pixel_head\."
    ]  # fmt: skip

    def __init__(self, config: MsclConfig):
        super().__init__(config)
        self.backbone = MsclBackbone(config)
        channels = self.backbone.channels
        self.decoder = DECODERS[config.decoder](channels, self.backbone.strides, config)
        coarse = config.decoder_channels if config.attach == "decoder" else channels[-1]
        fine = channels[-1] if config.attach == "backbone" else config.decoder_channels
        self.global_head = self.local_head = self.pixel_head = None
        with torch.random.fork_rng():  # whichever heads there are, backbone and decoder start from the same weights
            if "g" in config.heads:
                self.global_head = GlobalHead(coarse, config.global_dim)
            if "l" in config.heads:
                self.local_head = LocalHead(coarse, config.local_dim, config.local_grid, config.local_layers)
            if "p" in config.heads:
                self.pixel_head = PixelHead(fine, config.pixel_dim, config.pixel_layers, config.pixel_bn)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        heads: tuple[str, ...] | None = None,
        boxes: Tensor | None = None,
        pixel_images: Tensor | None = None,
        **kwargs,
    ) -> MsclPreTrainingOutput:
        """Embeddings of pixel_values (B, C, H, W).

        heads: which of g, l, p to compute; None = those that the network has. boxes (B, 4): where the local blocks lie, see `LocalHead`.
        pixel_images: indices of the images that go through the pixel head (those with labels); None = all.
        """
        heads = self.config.heads if heads is None else heads
        if absent := sorted(set(heads) - set(self.config.heads)):
            raise ValueError(f"this network has the heads {self.config.heads}, not {absent}; name them in MsclConfig.heads")
        maps = self.backbone(pixel_values).feature_maps
        attach = self.config.attach
        decoded = self.decoder(list(maps)) if attach == "decoder" else None
        coarse = decoded if attach == "decoder" else maps[-1]
        return MsclPreTrainingOutput(
            global_embeds=self.global_head(coarse) if "g" in heads else None,
            local_embeds=self.local_head(coarse, boxes) if "l" in heads else None,
            pixel_embeds=self._pixel_embeds(maps, decoded, pixel_images) if "p" in heads else None,
            feature_maps=maps,
        )

    def _pixel_embeds(self, maps: tuple[Tensor, ...], decoded: Tensor | None, images: Tensor | None) -> Tensor:
        def chosen(x: Tensor) -> Tensor:
            return x if images is None else x[images]

        if self.config.attach == "backbone":
            features = chosen(maps[-1])
        elif decoded is None:  # "ancestor": images without labels need no decoder
            features = self.decoder([chosen(x) for x in maps])
        else:
            features = chosen(decoded)
        grid = self.config.pixel_grid
        height, width = features.shape[-2:]
        # 65: DeepLab's grid for crops of 513 px at stride 8
        size = [grid, max(1, round(grid * width / height))] if grid else [min(side, 65) for side in (height, width)]
        if size != list(features.shape[-2:]):
            features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return self.pixel_head(features)


class MsclForSemanticSegmentation(MsclPreTrainedModel):
    """Backbone, decoder and a 1x1 classifier, with an auxiliary FCN head on the tap before the last while training."""

    _keys_to_ignore_on_load_unexpected = [r"^global_head\.", r"^local_head\.", r"^pixel_head\."]

    def __init__(self, config: MsclConfig):
        super().__init__(config)
        self.backbone = MsclBackbone(config)
        channels = self.backbone.channels
        self.decoder = DECODERS[config.decoder](channels, self.backbone.strides, config)
        self.dropout = nn.Dropout2d(config.decoder_dropout)
        self.classifier = _classifier(config.decoder_channels, config.num_labels)
        self.auxiliary_head = None
        if config.use_auxiliary_head and len(channels) > 1:
            hidden = max(channels[-2] // 4, 16)
            self.auxiliary_head = nn.Sequential(
                conv_bn_relu(channels[-2], hidden, 3), _classifier(hidden, config.num_labels)
            )
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs):
        """pixel_values (B, C, H, W) -> logits (B, K, h, w); with labels (B, H, W) also the loss.

        The loss is cross-entropy on logits brought to the labels' size, plus `auxiliary_loss_weight` times the same of the
        auxiliary head; pixels labelled 255 do not count.
        """
        logits, auxiliary = self.both_logits(pixel_values, with_auxiliary=labels is not None)
        loss = None if labels is None else self.segmentation_loss(logits, labels, auxiliary)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    def both_logits(self, pixel_values: Tensor, with_auxiliary: bool = True) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K, h, w) of the classifier and of the auxiliary head, None where there is no such head or it is not asked for."""
        maps = self.backbone(pixel_values).feature_maps
        logits = self.classifier(self.dropout(self.decoder(list(maps)))).float()
        if self.auxiliary_head is None or not with_auxiliary:
            return logits, None
        return logits, self.auxiliary_head(maps[-2]).float()

    def segmentation_loss(self, logits: Tensor, labels: Tensor, auxiliary: Tensor | None) -> Tensor:
        """Main loss (B, K, h, w) against labels (B, H, W), plus the weighted auxiliary one."""
        loss = self.cross_entropy(logits, labels)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary_loss_weight * self.cross_entropy(auxiliary, labels)
        return loss

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, K, h, w), brought to the size of the labels (B, H, W)."""
        if not (labels != self.config.semantic_loss_ignore_index).any():
            return logits.sum() * 0  # nothing is labelled: zero with a graph, where the mean over no pixel would be NaN
        if logits.shape[-2:] != labels.shape[-2:]:
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, labels.long(), ignore_index=self.config.semantic_loss_ignore_index)


def _classifier(channels: int, num_labels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_labels, 1)
    layer._is_classifier = True
    return layer

"""The network that pre-training builds: backbone, decoder, contrastive heads, image size."""

from dataclasses import dataclass
from typing import Literal

from .fields import Section, option

DEFAULT_SIZE = 96  # px, of the crop where no size is given and none is derived from the images


@dataclass(frozen=True)
class NetworkConfig(Section):
    """Backbone, decoder, contrastive heads, image size."""

    backbone: str = option("resnet18", "name of a timm model")
    pretrained: bool = option(False, "start from timm's pre-trained weights, which are downloaded")
    backbone_weights: str | None = option(None, "safetensors file of timm weights to start from (default: none)")
    two_towers: bool = option(False, "use two backbones of half the width, one for lightness and one for color")
    decoder: Literal["auto", "deeplabv3", "fcn", "mla", "dpt", "linear"] = option(
        "auto", "auto = mla for ViTs, deeplabv3 for other backbones"
    )
    decoder_channels: int = option(256, "width of the decoder", at_least=1)
    decoder_rates: list[int] | None = option(None, "atrous rates of deeplabv3 (default: by the image size)", at_least=1)
    output_stride: int | None = option(None, "stride of the last features: 8, 16 or 32 (default: 16 where the backbone supports it)")
    image_size: int | None = option(
        None, "height of the training crop in px (default: 96; for data of your own by the images and the machine)", at_least=16
    )
    image_width: int | None = option(None, "width of the training crop in px (default: its height)", at_least=16)
    base_size: int | None = option(
        None, "short side in px that images are scaled to before cropping; 0 = as they are (default: the height of the crop, or derived "
        "with it)", at_least=0,
    )  # fmt: skip
    attach: Literal["ancestor", "backbone", "decoder"] = option(
        "ancestor", "features that the contrastive heads read: ancestor = as in the methods that the losses come from (global and local: "
        "backbone; pixel: decoder); backbone = of the backbone; decoder = of the decoder",
    )  # fmt: skip
    bn_views: Literal["joint", "separate"] | None = option(None, "batch statistics of the two views (default: as the method's paper)")
    local_grid: int = option(7, "S of the S x S blocks of the local loss, at most the side of the feature map", at_least=1)
    local_layers: int = option(1, "layers of the local head", at_least=1)
    global_dim: int = option(128, "dimension of the global embeddings", at_least=1)
    local_dim: int = option(128, "dimension of the local embeddings", at_least=1)
    pixel_dim: int = option(256, "dimension of the pixel embeddings", at_least=1)
    pixel_layers: int | None = option(None, "layers of the pixel head (default: 1 in mscl, 3 in other methods)", at_least=1)
    pixel_bn: bool = option(True, "use BatchNorm in the pixel head")
    pixel_grid: int | None = option(
        None, "height in positions to which features are resized for the pixel loss (default: as they are, at most 65)", at_least=1
    )

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_rates == []:
            raise ValueError("--decoder-rates is empty; expected at least one rate. Give rates such as 6 12 18.")

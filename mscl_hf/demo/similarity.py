"""The class of every pixel of an image by a checkpoint, the similarity of their embeddings, and pictures of both.

Letters: H W height and width of the image in pixels, h w those of a feature map, E numbers of an embedding, K classes.
"""

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.functional import normalize as unit_length
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..config import InferenceConfig
from ..data.image_formats import UnsupportedFile
from ..data.image_io import DECODE_ERRORS, decode
from ..data.pixels import displayed, in_levels, resized, stored_pixels
from ..evaluation.inference import predict_logits
from ..evaluation.prediction import Predictor
from ..methods import METHODS
from ..models.configuration_mscl import MsclConfig
from ..models.loading import open_model
from ..models.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation
from ..visual.palette import overlay

Network = MsclForSemanticSegmentation | MsclForPreTraining
NETWORKS = {network_cls.__name__: network_cls for network_cls in (MsclForSemanticSegmentation, MsclForPreTraining)}
MAX_CLASSES = 255  # class ids are 8 bits, and 255 stands for no class
MAX_INPUT = 4 * 1024**2  # pixels that a network receives at once
MAX_MAP = 16 * MAX_INPUT  # numbers in the map before a pixel head
GRID = 128  # embeddings along the longer side of an image
MIN_SIDE = 768  # of a picture in the page [px]: browsers report wrong positions of clicks on pictures that they enlarge


@dataclass(frozen=True, eq=False)
class View:
    """The outputs of one checkpoint for one image.

    about: description of the network. size: (H, W). classes: K names, () for a pre-training checkpoint. mask: (H, W) uint8 ids, or None.
    embeddings: (E, h, w) float32 of unit length, the network's map upsampled. Position (i, j) is at ((i + 0.5) / h, (j + 0.5) / w) of the
    image. source: description of that map.
    """

    about: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    mask: np.ndarray | None
    embeddings: np.ndarray
    source: str

    def shares(self) -> list[tuple[int, float]]:
        """Return (class id, share of the pixels [%]) of all K classes, the largest share first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return [(int(i), float(100 * counts[i] / self.mask.size)) for i in np.argsort(-counts, kind="stable")]

    def similarity(self, point: tuple[int, int]) -> np.ndarray:
        """Return the cosine of all embeddings with the one at pixel (x, y) of the image: (h, w) float32 in [-1, 1]."""
        row, column = (pixel * count // side for pixel, count, side in zip(point[::-1], self.embeddings.shape[1:], self.size))
        return np.tensordot(self.embeddings[:, row, column], self.embeddings, 1).clip(-1, 1)


def read_image(path: str, max_side: int) -> tuple[np.ndarray, str | None]:
    """Return an image as evaluation reads it, (H, W, 3) uint8, or values as stored where it has more than 8 bits.

    An image whose longer side exceeds max_side [px] is reduced; the second value is then a message, else None.
    """
    name = Path(path).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow raises beyond twice that size
            image = stored_pixels(decode(path), lambda column: name)
    except UnsupportedFile as error:
        raise ValueError(f"{name} {error}") from error
    except DECODE_ERRORS as error:
        raise ValueError(f"{name} cannot be read ({str(error).rstrip('.')}). Choose another image.") from error
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image, None
    size = [max(1, round(side * max_side / max(height, width))) for side in (width, height)]
    reduced = resized(image, size, Image.Resampling.BILINEAR)
    return reduced, f"{name} was reduced from {width} x {height} to {size[0]} x {size[1]} pixels"


def open_checkpoint(name: str, token: bool | None = None) -> Network:
    """Return the network of a folder or Hub name, ready to predict. Raises ValueError where it cannot be shown.

    Only configuration and safetensors are read: no code of a checkpoint is run, and nothing is unpickled.
    token: False = public models only; None = with the token of this machine, if it has one.
    """
    try:
        config = open_model(MsclConfig, name, token=token)
        class_name = (config.architectures or ["an unknown model"])[0]
        if class_name not in NETWORKS:
            raise ValueError(f"{name} holds {class_name}; expected {' or '.join(NETWORKS)}. Choose a checkpoint of mscl_hf.")
        if config.num_channels != 3 or config.num_labels > MAX_CLASSES:
            raise ValueError(
                f"{name} has {config.num_channels} input channels and {config.num_labels} classes; expected 3 channels and at most "
                f"{MAX_CLASSES} classes. Choose another checkpoint."
            )
        if config.bands is not None and list(config.bands) != [1, 2, 3]:
            bands = " ".join(map(str, config.bands))
            raise ValueError(f"{name} reads the bands {bands}; expected a model of RGB images. Use mscl-predict, or another checkpoint.")
        network, loaded = open_model(NETWORKS[class_name], name, output_loading_info=True, use_safetensors=True, token=token)
    except ValueError:
        raise
    except Exception as error:  # the configuration of an untrusted checkpoint can fail anywhere in timm
        logging.getLogger(__name__).exception("cannot open %s", name)
        reason = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        raise ValueError(f"{name} cannot be opened ({type(error).__name__}: {reason}). Choose another checkpoint.") from error
    if any(key.startswith("pixel_head.") for key in loaded["missing_keys"]):  # its weights are random, so its output shows nothing
        network.config.heads = [head for head in config.heads if head != "pixel"]
    return network.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def view_of(network: Network, image: np.ndarray) -> View:
    """Return the outputs of the network for an image of `read_image`, which is scaled and normalized as in evaluation.

    Raises ValueError where the image becomes too large for one pass, where the network returns NaN or infinity, and where the image has
    more than 8 bits and the network no image range.
    """
    config, size = network.config, image.shape[:2]
    if image.dtype != np.uint8 and config.image_range is None:
        raise ValueError(
            "the image holds more than 8 bits and the checkpoint was trained on images of 8 bits (no image_range in its config.json). "
            "Choose an image of 8 bits, or another checkpoint."
        )
    image = in_levels(image, config.image_range, lambda: "the image")
    _check_sizes(network, size)
    has_classifier, maps = isinstance(network, MsclForSemanticSegmentation), []

    def model(pixel_values: Tensor) -> SemanticSegmenterOutput:
        embeddings, logits = outputs(network, pixel_values)
        if not (embeddings.isfinite().all() and (logits is None or logits.isfinite().all())):
            raise ValueError("The network returns NaN or infinity; expected finite numbers. Choose an earlier checkpoint.")
        maps.append(embeddings)
        return SemanticSegmenterOutput(logits=embeddings if logits is None else logits)

    predictor = Predictor(model, config, network.device, InferenceConfig(base_size=config.base_size))
    if has_classifier:
        mask = predictor.ids([image])[0].cpu().numpy().astype(np.uint8)
        classes = tuple(config.id2label[i] for i in range(config.num_labels))
    else:
        mask, classes = None, ()
        predict_logits(model, predictor.normalized(image), (1, 1), predictor.options)  # for its maps alone
    grid = [max(count, math.ceil(GRID * side / max(size))) for count, side in zip(maps[0].shape[-2:], size)]
    embeddings = unit_length(interpolate(maps[0].float(), size=grid, mode="bilinear", align_corners=False)[0], dim=0)
    return View(_about(network), size, classes, mask, embeddings.cpu().numpy(), _source(network, maps[0]))


def _check_sizes(network: Network, size: tuple[int, int]) -> None:
    """Raise ValueError where the checkpoint's configuration scales an image of this size (H, W) beyond the limits."""
    config = network.config
    scale = config.base_size / min(size) if config.base_size else 1.0
    height, width = (max(1, round(side * scale)) for side in size)
    if height * width <= MAX_INPUT:
        height, width = network.backbone.input_size((height, width))
    if height * width > MAX_INPUT:
        fields = ", ".join(f"{name} {getattr(config, name)}" for name in ("base_size", "size_multiple", "fixed_size"))
        raise ValueError(
            f"The checkpoint ({fields}) scales the image of {size[1]} x {size[0]} px to {width} x {height}; "
            f"expected at most {MAX_INPUT} px. Crop the image, or choose another checkpoint."
        )
    grid, channels = config.pixel_grid or 0, max(config.pixel_dim, config.decoder_channels, *network.backbone.channels)
    if isinstance(network, MsclForPreTraining) and "pixel" in config.heads and grid**2 * max(1, width / height) * channels > MAX_MAP:
        raise ValueError(
            f"The checkpoint's pixel_grid is {grid}, with {channels} channels; expected a map of at most {MAX_MAP} numbers. "
            "Choose another checkpoint."
        )


def outputs(network: Network, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return embeddings (B, E, h, w) and logits (B, K, h', w'), or None for the logits of a pre-training checkpoint."""
    if isinstance(network, MsclForPreTraining) and "pixel" in network.config.heads:
        return network(pixel_values, heads=("pixel",)).pixel_embeds, None
    maps = network.backbone(pixel_values).feature_maps
    if isinstance(network, MsclForPreTraining):
        return network.decoder(list(maps)) if _trains_decoder(network.config) else maps[-1], None
    decoded = network.decoder(list(maps))
    return decoded, network.classifier(decoded).float()


def segmentation_picture(image: np.ndarray, view: View, opacity: float, point: tuple[int, int] | None) -> Image.Image:
    """Return the image (H, W, 3) with the colors of its classes over it, enlarged for the page."""
    factor = enlargement(view.size)
    mask = view.mask.repeat(factor, 0).repeat(factor, 1)
    return _marked(overlay(_enlarged(image), mask, view.classes, opacity), point, factor)


def similarity_picture(image: np.ndarray, view: View, opacity: float, point: tuple[int, int] | None) -> Image.Image:
    """Return the image in gray with the colors of the similarity to the point over it; without a point, the image alone."""
    enlarged = _enlarged(image)
    if point is None:
        return Image.fromarray(enlarged)
    return _marked(heat_map(enlarged, view.similarity(point), opacity), point, enlargement(view.size))


def heat_map(image: np.ndarray, cosine: np.ndarray, opacity: float) -> np.ndarray:
    """Return the image (H, W, 3) uint8 in gray with the colors of a cosine (h, w) over it, from its smallest to its largest value."""
    height, width = image.shape[:2]
    upsampled = np.asarray(Image.fromarray(cosine).resize((width, height), Image.Resampling.BILINEAR))
    low, high = float(cosine.min()), float(cosine.max())
    fraction = (upsampled - low) / (high - low) if high > low else np.ones_like(upsampled)
    gray = image.mean(-1, keepdims=True) * 0.5 + 64  # half the contrast, so that colors depend little on the brightness
    return (gray * (1 - opacity) + heat_colors(fraction) * opacity).round().astype(np.uint8)


def heat_colors(fraction: np.ndarray) -> np.ndarray:
    """Return viridis colors (..., 3) in [0, 255] of numbers (...) in [0, 1]."""
    from matplotlib import colormaps

    return colormaps["viridis"](fraction)[..., :3] * 255


def enlargement(size: tuple[int, int]) -> int:
    """Return the factor by which an image of size (H, W) is enlarged for the page."""
    return math.ceil(MIN_SIDE / max(size))


def _enlarged(image: np.ndarray) -> np.ndarray:
    factor = enlargement(image.shape[:2])
    if image.dtype != np.uint8:  # more than 8 bits: scaled between its smallest and largest value, for display only
        image = displayed((image - float(image.min())) * 255 / max(1, image.max() - image.min()))
    return np.asarray(Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.BICUBIC))


def _marked(pixels: np.ndarray, point: tuple[int, int] | None, factor: int) -> Image.Image:
    """Return the picture with a black and white ring around the point, which is visible on every color."""
    picture = Image.fromarray(pixels)
    if point is not None:
        x, y = ((coordinate + 0.5) * factor for coordinate in point)
        radius = max(picture.size) / 64
        for color, width in (("black", 0.5), ("white", 0.25)):
            box = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(picture).ellipse(box, outline=color, width=max(1, round(width * radius)))
    return picture


def _trains_decoder(config: MsclConfig) -> bool:
    """Return whether a pre-training without a pixel head has trained the decoder."""
    method = METHODS.get(config.contrast.get("method", "mscl"))
    return config.attach == "decoder" or (method is not None and "decoder" in method.trained_parts and "pixel" not in method.heads)


def _about(network: Network) -> str:
    config = network.config
    if isinstance(network, MsclForSemanticSegmentation):
        return f"{config.backbone}, {config.decoder_type}, fine-tuned for {config.num_labels} classes"
    method = config.contrast.get("method", "mscl")
    return f"{config.backbone}, {config.decoder_type}, pre-trained by {method}, without a classifier and so without a segmentation"


def _source(network: Network, embeddings: Tensor) -> str:
    if isinstance(network, MsclForSemanticSegmentation):
        name = "output of the decoder, before the classifier"
    elif "pixel" in network.config.heads:
        name = "output of the pixel head"
    else:
        name = "output of the decoder" if _trains_decoder(network.config) else "last map of the backbone (no pixel head was trained)"
    return "{}, {} channels at {} x {} positions".format(name, *embeddings.shape[1:])

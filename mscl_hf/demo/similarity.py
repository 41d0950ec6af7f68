"""What a checkpoint makes of one image: the class of every pixel, how alike their embeddings are, and pictures of both.

Letters: H W pixels of the image, h w cells of a feature map, E numbers of an embedding, K classes.
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
from torch.nn.functional import interpolate, normalize
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..config import InferenceConfig
from ..data.image_formats import UnsupportedFile
from ..data.image_io import DECODE_ERRORS, decode
from ..data.pixels import displayed, in_levels, resized, stored_pixels
from ..evaluation.inference import predict_ids, predict_logits
from ..methods import METHODS
from ..models.configuration_mscl import MsclConfig
from ..models.loading import open_model
from ..models.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation
from ..visual.palette import overlay

Network = MsclForSemanticSegmentation | MsclForPreTraining
KINDS = {kind.__name__: kind for kind in (MsclForSemanticSegmentation, MsclForPreTraining)}
MAX_CLASSES = 255  # the id after them stands for no class
MAX_INPUT = 4 * 1024**2  # px that a network is given at once
MAX_MAP = 16 * MAX_INPUT  # numbers in the map of a pixel head
GRID = 128  # embeddings along the longer side of an image, so that a click finds its own
LEAST_SIDE = 768  # px, of a picture in a page: a browser misplaces clicks in one that it has to enlarge


@dataclass(frozen=True, eq=False)
class View:
    """What one checkpoint makes of one image.

    about: the network in words. size: (H, W). classes: K names, () for a pre-training checkpoint; mask: (H, W) uint8 ids, or None.
    embeddings: (E, h, w) float32 of unit length, the network's map up-sampled, cell (i, j) at ((i + 0.5) / h, (j + 0.5) / w) of the image;
    source: which map that is, in words.
    """

    about: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    mask: np.ndarray | None
    embeddings: np.ndarray
    source: str

    def shares(self) -> list[tuple[int, float]]:
        """(class id, share of the pixels in %) of all K classes, the largest share first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return [(int(i), float(100 * counts[i] / self.mask.size)) for i in np.argsort(-counts, kind="stable")]

    def similarity(self, point: tuple[int, int]) -> np.ndarray:
        """Cosine of the embedding of every cell with that of the cell in which pixel (x, y) of the image lies: (h, w) float32, -1 to 1."""
        row, column = (at * cells // side for at, cells, side in zip(point[::-1], self.embeddings.shape[1:], self.size))
        return np.tensordot(self.embeddings[:, row, column], self.embeddings, 1).clip(-1, 1)


def read_image(path: str, max_side: int) -> tuple[np.ndarray, str | None]:
    """(H, W, 3) uint8, or numbers as stored of an image of more than 8 bits; upright, as evaluation reads it, but at most max_side px long;
    and a sentence that says so, if it was longer."""
    name = Path(path).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # beyond twice that size it is an error
            image = stored_pixels(decode(path), lambda column: name)
    except UnsupportedFile as error:
        raise ValueError(f"{name} {error}") from error
    except DECODE_ERRORS as error:
        raise ValueError(f"{name} cannot be read ({str(error).rstrip('.')}); give another image") from error
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image, None
    size = [max(1, round(side * max_side / max(height, width))) for side in (width, height)]
    reduced = resized(image, size, Image.Resampling.BILINEAR)
    return reduced, f"{name} has {width} x {height} pixels; it is worked on at {size[0]} x {size[1]}"


def open_checkpoint(name: str, token: bool | None = None) -> Network:
    """The network in a folder or under a Hub name, ready to predict; ValueError in one sentence when there is none that can be shown.

    Only configuration and safetensors are read: no code of a checkpoint is run, no pickle opened. token: False = as a stranger, who sees
    public models only; None = with the token of this machine, if it has one.
    """
    try:
        config = open_model(MsclConfig, name, token=token)
        made = (config.architectures or ["nothing known"])[0]
        if made not in KINDS:
            raise ValueError(f"{name} holds {made}; give a checkpoint of mscl_hf that holds {' or '.join(KINDS)}")
        if config.num_channels != 3 or config.num_labels > MAX_CLASSES:
            raise ValueError(
                f"{name} takes {config.num_channels} channels and knows {config.num_labels} classes; "
                f"give one for colour images with at most {MAX_CLASSES} classes"
            )
        network, loaded = open_model(KINDS[made], name, output_loading_info=True, use_safetensors=True, token=token)
    except ValueError:
        raise
    except Exception as error:  # a stranger's configuration can fail anywhere in timm
        logging.getLogger(__name__).exception("cannot open %s", name)
        reason = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        raise ValueError(f"{name} cannot be opened ({type(error).__name__}: {reason}); give another checkpoint") from error
    if any(key.startswith("pixel_head.") for key in loaded["missing_keys"]):  # a random one would show nothing
        network.config.heads = [head for head in config.heads if head != "pixel"]
    return network.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def view_of(network: Network, image: np.ndarray) -> View:
    """One pass of the network over an image (H, W, 3) as `read_image` returns it, resized and normalised as in evaluation.

    Raises ValueError when the image becomes too large for one pass, the network answers with NaN, or the image has more than 8 bits and
    the network no image range.
    """
    config, size = network.config, image.shape[:2]
    if image.dtype != np.uint8 and config.image_range is None:
        raise ValueError(
            "the image holds more than 8 bits and the checkpoint was trained on images of 8 bits (no image_range in its config.json); give "
            "an image of 8 bits, or another checkpoint"
        )
    image = in_levels(image, config.image_range, lambda: "the image")
    _check_sizes(network, size)
    segments, seen = isinstance(network, MsclForSemanticSegmentation), []

    def model(pixel_values: Tensor) -> SemanticSegmenterOutput:
        embeddings, logits = outputs(network, pixel_values)
        if not (embeddings.isfinite().all() and (logits is None or logits.isfinite().all())):
            raise ValueError("the network answers with NaN or infinity; give a checkpoint from before that began")
        seen.append(embeddings)
        return SemanticSegmenterOutput(logits=embeddings if logits is None else logits)

    options = InferenceConfig(base_size=config.base_size)
    predict, reached = (predict_ids, size) if segments else (predict_logits, (1, 1))
    predicted = predict(model, normalised(image, network), reached, options)
    grid = [max(cells, math.ceil(GRID * side / max(size))) for cells, side in zip(seen[0].shape[-2:], size)]
    embeddings = normalize(interpolate(seen[0].float(), size=grid, mode="bilinear", align_corners=False)[0], dim=0)
    mask = predicted.byte().cpu().numpy() if segments else None
    classes = tuple(config.id2label[i] for i in range(config.num_labels)) if segments else ()
    return View(_about(network), size, classes, mask, embeddings.cpu().numpy(), _source(network, seen[0]))


def _check_sizes(network: Network, size: tuple[int, int]) -> None:
    """ValueError where an image of this size (H, W) becomes too large, by the sizes that the checkpoint's configuration asks for."""
    config, most = network.config, MAX_INPUT
    scale = config.base_size / min(size) if config.base_size else 1.0
    given = height, width = tuple(max(1, round(side * scale)) for side in size)
    if height * width <= most:
        given = height, width = network.backbone.input_size(given)
    if height * width > most:
        asked = ", ".join(f"{name} {getattr(config, name)}" for name in ("base_size", "size_multiple", "fixed_size"))
        raise ValueError(
            f"the image of {size[1]} x {size[0]} px would reach the network as {width} x {height}, because the checkpoint asks for {asked}"
            "; crop it to a less long one, or give another checkpoint"
        )
    grid, wide = config.pixel_grid or 0, max(config.pixel_dim, config.decoder_channels, *network.backbone.channels)
    if isinstance(network, MsclForPreTraining) and "pixel" in config.heads and grid**2 * max(1, width / height) * wide > MAX_MAP:
        raise ValueError(
            f"the checkpoint brings the map before its pixel head to a height of {grid} cells (pixel_grid), too large for {wide} channels; "
            "give another checkpoint"
        )


def normalised(image: np.ndarray, network: Network) -> Tensor:
    """(1, 3, H, W) on the network's device, from (H, W, 3) in levels of 0 to 255."""
    mean, std = (torch.tensor(m, device=network.device).view(1, 3, 1, 1) for m in (network.config.image_mean, network.config.image_std))
    return (torch.tensor(image, device=network.device).permute(2, 0, 1)[None].float() / 255 - mean) / std


def outputs(network: Network, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Embeddings (B, E, h, w) and logits (B, K, h', w'), None for a pre-training checkpoint."""
    if isinstance(network, MsclForPreTraining) and "pixel" in network.config.heads:
        return network(pixel_values, heads=("pixel",)).pixel_embeds, None
    maps = network.backbone(pixel_values).feature_maps
    if isinstance(network, MsclForPreTraining):
        return network.decoder(list(maps)) if _trains_decoder(network.config) else maps[-1], None
    decoded = network.decoder(list(maps))
    return decoded, network.classifier(decoded).float()


def segmentation_picture(image: np.ndarray, view: View, opacity: float, point: tuple[int, int] | None) -> Image.Image:
    """The image (H, W, 3) uint8 under the colours of its classes, enlarged for a page."""
    times = enlargement(view.size)
    mask = view.mask.repeat(times, 0).repeat(times, 1)
    return _marked(overlay(_enlarged(image), mask, view.classes, opacity), point, times)


def similarity_picture(image: np.ndarray, view: View, opacity: float, point: tuple[int, int] | None) -> Image.Image:
    """The image in grey under the colours of the similarity to the point; the image alone without a point."""
    large = _enlarged(image)
    if point is None:
        return Image.fromarray(large)
    return _marked(heat_map(large, view.similarity(point), opacity), point, enlargement(view.size))


def heat_map(image: np.ndarray, cosine: np.ndarray, opacity: float) -> np.ndarray:
    """Image (H, W, 3) uint8 in grey under the colours of a cosine (h, w), brought to its size: from its least to its greatest value."""
    height, width = image.shape[:2]
    fine = np.asarray(Image.fromarray(cosine).resize((width, height), Image.Resampling.BILINEAR))
    low, high = float(cosine.min()), float(cosine.max())
    share = (fine - low) / (high - low) if high > low else np.ones_like(fine)
    grey = image.mean(-1, keepdims=True) * 0.5 + 64  # half the contrast: a colour must not depend on the light
    return (grey * (1 - opacity) + heat_colours(share) * opacity).round().astype(np.uint8)


def heat_colours(share: np.ndarray) -> np.ndarray:
    """Shares (...) from 0 to 1 -> colours (..., 3) from 0 to 255, in steps that look even to colour-blind eyes too."""
    from matplotlib import colormaps

    return colormaps["viridis"](share)[..., :3] * 255


def enlargement(size: tuple[int, int]) -> int:
    """How many pixels of a picture in the page stand for one of the image of size (H, W), along each side."""
    return math.ceil(LEAST_SIDE / max(size))


def _enlarged(image: np.ndarray) -> np.ndarray:
    times = enlargement(image.shape[:2])
    if image.dtype != np.uint8:  # more than 8 bits: spread over the levels for the eye alone
        image = displayed((image - float(image.min())) * 255 / max(1, image.max() - image.min()))
    return np.asarray(Image.fromarray(image).resize((image.shape[1] * times, image.shape[0] * times), Image.Resampling.BICUBIC))


def _marked(pixels: np.ndarray, point: tuple[int, int] | None, times: int) -> Image.Image:
    """With a ring around the point, white around black, to be seen on every colour."""
    picture = Image.fromarray(pixels)
    if point is not None:
        x, y = ((at + 0.5) * times for at in point)
        radius = max(picture.size) / 64
        for colour, width in (("black", 0.5), ("white", 0.25)):
            box = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(picture).ellipse(box, outline=colour, width=max(1, round(width * radius)))
    return picture


def _trains_decoder(config: MsclConfig) -> bool:
    """Whether pre-training without the network's pixel head has trained the decoder, which else is as random as it began."""
    method = METHODS.get(config.contrast.get("method", "mscl"))
    return config.attach == "decoder" or (method is not None and "decoder" in method.transfers and "pixel" not in method.heads)


def _about(network: Network) -> str:
    config = network.config
    if isinstance(network, MsclForSemanticSegmentation):
        return f"{config.backbone}, {config.decoder_type}, fine-tuned for {config.num_labels} classes"
    method = config.contrast.get("method", "mscl")
    return f"{config.backbone}, {config.decoder_type}, pre-trained by {method}; it has no classifier yet, hence no segmentation"


def _source(network: Network, embeddings: Tensor) -> str:
    if isinstance(network, MsclForSemanticSegmentation):
        name = "the decoder's output, before the classifier"
    elif "pixel" in network.config.heads:
        name = "the output of the pixel head"
    else:
        name = "the decoder's output" if _trains_decoder(network.config) else "the backbone's last map, for no pixel head was trained"
    return "{}, {} numbers in each of {} x {} cells".format(name, *embeddings.shape[1:])

"""Export as a graph that runs without this package, in ONNX or as a program of torch.export, from images to logits of their size."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from timm.layers import padding, pos_embed_sincos
from timm.models import vision_transformer_sam
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..sharing.model_folder import image_processor
from .compare import check_same, description, full_logits, random_images

BOUND = 1e-4  # of the logits' size
BATCHES = (1, 3)  # sizes that are compared. The traced example has 2, because a graph traced with 1 accepts only 1.


class Segmenter(nn.Module):
    """A network from normalized pixel_values (B, C, H, W) to logits (B, K, H, W)."""

    def __init__(self, network: PreTrainedModel):
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        return full_logits(self.network, pixel_values)


@torch.no_grad()
def save_graph(network: PreTrainedModel, folder: Path, to: str, size: tuple[int, int] | None) -> str:
    """Write model.onnx (to = "onnx") or model.pt2 ("torch"), and preprocessor_config.json; return a summary.

    size: the only height and width that the graph accepts; None = any. With "torch" the feature map then needs at least 2 x 2 positions,
    because torch.export treats a size of 1 as a constant. Batches can have any size.
    """
    config = network.config
    if not hasattr(network, "classifier"):
        raise ValueError(f"--to is {to}, but the model is pre-trained and has no classifier. Fine-tune it first, or give --to timm.")
    segmenter = Segmenter(network).eval()
    height, width = size or (config.image_size + 8, config.image_size + 40)
    example = random_images(config, 2, height, width)
    trace, save = {"onnx": (_trace_onnx, _save_onnx), "torch": (_trace_torch, _save_torch)}[to]
    try:
        with _traceable_timm(segmenter):
            program = trace(segmenter, example, size is None)
    except Exception as error:  # tracers raise many types of errors
        sizes_text = "any size" if size is None else "this size"
        raise ValueError(f"{config.backbone} cannot be traced for images of {sizes_text} ({_reason(error)}). {_advice(size)}") from error
    run = save(program, folder, description(config), sum(p.numel() * p.element_size() for p in segmenter.parameters()))
    worst = max(_check(run, segmenter, random_images(config, batch, *side), size) for side in sizes(config, size) for batch in BATCHES)
    image_processor(config, size).save_pretrained(folder)
    images = "images of any size" if size is None else f"images of {size[0]} x {size[1]} px"
    if size is None and to == "torch":
        images += " whose feature map has at least 2 x 2 positions"
    return f"{to}: {images}, batches of any size; relative difference of the logits {worst:.1e}"


def sizes(config: PreTrainedConfig, size: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Return height and width of the images on which the graph is compared."""
    height, width = config.image_size, config.image_width or config.image_size
    return [size] if size else [(height, width), (height + 1, width + 35), (2 * height, width + 64)]


def _check(run: Callable, segmenter: Segmenter, images: Tensor, size: tuple[int, int] | None) -> float:
    name = f"the graph (for {len(images)} images of {images.shape[2]} x {images.shape[3]} px)"
    try:
        logits = run(images)
    except Exception as error:  # AssertionError of the program, or an error class of ONNX Runtime
        raise ValueError(f"{name} fails ({_reason(error)}). {_advice(size)}") from error
    return check_same(name, logits, segmenter(images), BOUND)


def _trace_onnx(segmenter: Segmenter, example: Tensor, any_size: bool) -> torch.onnx.ONNXProgram:
    axes = {0: "batch"} | ({2: "height", 3: "width"} if any_size else {})
    return torch.onnx.export(segmenter, (example,), dynamo=True, dynamic_shapes={"pixel_values": axes}, input_names=["pixel_values"],
                             output_names=["logits"], verbose=False)  # fmt: skip


def _save_onnx(program: torch.onnx.ONNXProgram, folder: Path, metadata: dict, num_bytes: int) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    program.save(str(folder / "model.onnx"), external_data=num_bytes > 1.9e9)  # an ONNX file holds at most 2 GB
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"pixel_values": images.numpy()})[0])


def _trace_torch(segmenter: Segmenter, example: Tensor, any_size: bool) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC  # AUTO would fix a dimension without an error
    axes = {0: dynamic} | ({2: dynamic, 3: dynamic} if any_size else {})
    return torch.export.export(segmenter, (example,), dynamic_shapes={"pixel_values": axes})


def _save_torch(program: torch.export.ExportedProgram, folder: Path, metadata: dict, num_bytes: int) -> Callable[[Tensor], Tensor]:
    torch.export.save(program, folder / "model.pt2", extra_files={"model.json": json.dumps(metadata)})
    return torch.export.load(folder / "model.pt2").module()


@contextlib.contextmanager
def _traceable_timm(network: nn.Module):
    """Replace three computations of timm that tracers cannot record.

    Its rotary embeddings divide by float(side), which makes the side of the example a constant of the graph (in ONNX without an error);
    its "same" padding uses math.ceil(side / stride), which torch.export cannot save; and SAM's fused attention has three dimensions, of
    which ONNX needs four.
    """
    fused = [module for module in network.modules() if isinstance(module, vision_transformer_sam.Attention) and module.fused_attn]
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(pos_embed_sincos, "float", torch.sym_float, create=True))
        patches.enter_context(mock.patch.object(padding, "get_same_padding", _same_padding))
        for module in fused:
            patches.enter_context(mock.patch.object(module, "fused_attn", False))
        yield


def _same_padding(side: int, kernel_size: int, stride: int, dilation: int) -> int:
    return torch.sym_max(0, ((side + stride - 1) // stride - 1) * stride + (kernel_size - 1) * dilation + 1 - side)


def _advice(size: tuple[int, int] | None) -> str:
    return "Give --height and --width for a graph of one size." if size is None else "Give --to timm."


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__

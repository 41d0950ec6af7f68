"""How images are predicted."""

from dataclasses import dataclass
from typing import Literal

from ..messages import flag
from .fields import Section, option


@dataclass(frozen=True)
class InferenceConfig(Section):
    """How images are predicted. Logits are scaled to the size of the mask before the argmax."""

    base_size: int | None = option(
        None, "short side in px that images are scaled to; 0 = as they are (default: as in training)", at_least=0
    )
    mode: Literal["whole", "slide"] = option("whole", "whole = the image at once; slide = overlapping windows, averaged")
    window: int | None = option(None, "with --mode slide: side of a window in px (default: 512)", at_least=1)
    stride: int | None = option(None, "with --mode slide: distance of windows in px (default: two thirds of the window)", at_least=1)
    flip: bool = option(False, "average with the prediction of the mirrored image")
    scales: list[float] = option([1.0], "scales of the image to average over; 1 = as it is", above=0)
    window_weights: Literal["distance", "uniform"] | None = option(
        None, "with --mode slide: average windows by the distance to their border, without seams, or uniformly (default: distance)"
    )
    eval_batch_size: int | None = option(
        None, "images of one size, or windows, that the network sees at once (default: 1 on a CPU, 8 on a GPU)", at_least=1
    )
    eval_threads: int = option(2, "threads that read images, and write predictions, while the network runs", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.scales:
            raise ValueError("--scales is empty; expected positive numbers such as 0.75 1.0 1.25.")
        if self.mode == "whole":
            for name in ("window", "stride", "window_weights"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{flag(name)} is {value}; expected none with --mode whole. Give --mode slide, or leave it out.")
            return
        window = self.window or 512
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "window_weights", self.window_weights or "distance")
        object.__setattr__(self, "stride", self.stride or max(1, round(window * 2 / 3)))
        if self.stride > self.window:
            raise ValueError(f"--stride is {self.stride}; expected at most --window {self.window}, or pixels between windows are missed.")

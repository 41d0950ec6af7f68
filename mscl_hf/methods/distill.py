"""Distillation: a network learns from the feature maps of a frozen, pre-trained backbone, on images without masks."""

from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import cosine_to_target, similarity_divergence
from ..losses.arguments import at_least_float32, check_choice
from ..losses.gather import gather_rows
from ..models.backbones import check_timm_name
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from ..models.normalization import image_statistics, normalize
from ..models.timm_weights import hub_weights, open_teacher
from .base import Method
from .heads import flatten_positions
from .memory import Queue

TOKEN_LOSSES = ("relations", "cosine")


class Distill(Method):
    """L = L_image + L_tokens. L_image: `similarity_divergence` of the mean vectors, with a queue of the teacher's as keys. L_tokens: that
    of the positions of each image, with these positions as keys ("relations"), or 1 - cosine of each position ("cosine").

    The student's vectors are a linear projection of its feature map, resized to the teacher's grid. Both see the same view. The teacher is
    in evaluation mode, and neither in checkpoints nor in the published model.
    """

    title = "distillation from a frozen teacher"
    paper = "Fang et al., ICLR, arXiv:2101.04731"
    year = 2021
    views = "single"
    preset = "moco_v2"
    state = "queue"
    local_options = ("teacher_weights",)

    def __init__(
        self,
        network: MsclForPreTraining,
        teacher: str | None = None,
        teacher_weights: str | None = None,
        teacher_pretrained: bool = False,
        token_loss: Literal["relations", "cosine"] = "relations",
        temperature: float = 0.07,
        queue_size: int = 8192,
    ):
        """teacher: a timm name; teacher_weights: a safetensors file with its weights, or teacher_pretrained: those of the Hub."""
        super().__init__(network)
        check_choice("--token-loss", token_loss, TOKEN_LOSSES)
        self.check_given({"teacher": teacher, "teacher_weights": teacher_weights, "teacher_pretrained": teacher_pretrained})
        if network.config.num_channels != 3:
            raise ValueError(f"images have {network.config.num_channels} bands, and a teacher reads three. Give three with --bands.")
        self.name, self.file, self.token_loss, self.temperature = teacher, teacher_weights, token_loss, temperature
        # In a list, so that it is no submodule: checkpoints, DistributedDataParallel and the published model leave it out.
        self.frozen = [open_teacher(teacher, teacher_weights, network.config.image_size)]
        for statistic, values in zip(("teacher_mean", "teacher_std"), image_statistics(self.teacher.config)):
            self.register_buffer(statistic, values, persistent=False)
        self.projection = nn.Conv2d(self.channels(), self.teacher.channels[-1], 1)
        self.queue = Queue(queue_size, self.teacher.channels[-1])

    @classmethod
    def check_given(cls, options: dict[str, Any]) -> None:
        name, file = options.get("teacher"), options.get("teacher_weights")
        if name is None:
            raise ValueError("--method distill needs a teacher. Give --teacher a timm name, and --teacher-weights or --teacher-pretrained.")
        check_timm_name(name, "--teacher")
        if file and options.get("teacher_pretrained"):
            raise ValueError("--teacher-weights and --teacher-pretrained are both given; expected one of them. Leave out the other.")
        if not file and not options.get("teacher_pretrained"):
            remedy = "Give --teacher-weights FILE.safetensors, or --teacher-pretrained for those of the Hub"
            raise ValueError(f"--teacher is {name} without weights, from which nothing can be learnt. {remedy}.")

    @property
    def teacher(self) -> nn.Module:
        """The frozen backbone."""
        return self.frozen[0]

    def _apply(self, fn, recurse: bool = True) -> "Distill":
        self.teacher._apply(fn)  # it follows to devices and types
        return super()._apply(fn, recurse)

    def facts(self) -> dict[str, str]:
        license_name = getattr(timm.get_pretrained_cfg(self.name, allow_unregistered=True), "license", None) or "not stated by timm"
        if self.file:
            return {"teacher": f"{self.name}, weights {Path(self.file).name}", "license of timm's own weights of it": license_name}
        return {"teacher": hub_weights(self.name), "license of the teacher": license_name}

    @torch.no_grad()
    def targets(self, image: Tensor) -> Tensor:
        """Return the teacher's map (B, F, h, w) of images with values in [0, 255]."""
        return at_least_float32(self.teacher(normalize(image, self.teacher_mean, self.teacher_std)).feature_maps[-1])

    def forward(self, image: Tensor, **_) -> dict[str, Tensor]:
        """image (B, 3, H, W) with values in [0, 255]."""
        target = self.targets(image)
        own = F.interpolate(self.projected(image), size=target.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
        own_mean, target_mean = unit(own.mean((2, 3))), unit(target.mean((2, 3)))
        keys = torch.cat([gather_rows(target_mean)[0], self.queue.read()])
        loss_image = similarity_divergence(own_mean, target_mean, keys, keys, self.temperature)
        own_tokens, tokens = (flatten_positions(unit(values)) for values in (own, target))
        if self.token_loss == "cosine":
            loss_tokens = 1 - cosine_to_target(own_tokens.flatten(0, 1), tokens.flatten(0, 1))
        else:
            loss_tokens = similarity_divergence(own_tokens, tokens, own_tokens, tokens, self.temperature)
        if self.training:
            self.queue.write(target_mean)
        return {"loss": loss_image + loss_tokens, "loss_image": loss_image.detach(), "loss_tokens": loss_tokens.detach()}

    def projected(self, image: Tensor) -> Tensor:
        """Return the student's map (B, F, h', w') in the space of the teacher."""
        return at_least_float32(self.projection(self.features(image)))

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": unit(self.projected(image).mean((2, 3)))}

"""Distillation: a network learns from the feature maps of a frozen, pre-trained backbone, on images without masks."""

from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import cosine_to_target, similarity_divergence
from ..losses.arguments import at_least_float32, check_choice
from ..losses.gather import gather_rows, mean_count
from ..models.backbones import check_timm_name
from ..models.heads_mscl import unit
from ..models.modeling_mscl import MsclForPreTraining
from ..models.normalization import image_statistics, normalize
from ..models.timm_weights import hub_weights, open_teacher
from .base import Method
from .heads import flatten_positions
from .memory import Queue

TOKEN_LOSSES = ("cosine", "relations")
MOST_POSITIONS = 1024  # of an image, whose relations are compared


class Distill(Method):
    """L = L_image + sum over the levels of L_tokens, of the vectors of a student and of a frozen teacher for the same view.

    L_image: `similarity_divergence` of the mean vectors of the images; keys are the teacher's of this batch and of a queue. L_tokens: that
    of the positions of each image, with its other positions as keys ("relations"), or 1 - cosine of each position ("cosine"). The levels
    are the last feature maps of both backbones, the last with the last and so on, as many as both have, and with `--attach decoder` the
    output of the decoder with the teacher's last map. L_image is of the last level.

    The student's vectors are a linear projection of its map, resized to the teacher's grid. The relations of larger grids are those of
    MOST_POSITIONS random positions. The teacher's channels are standardized: each has mean 0 and deviation 1 over the positions of a
    batch. Otherwise what is common to all its vectors hides their differences (Ranzinger et al., 2024, arXiv:2410.01680, compare such
    normalizations). The teacher is in evaluation mode, and neither in checkpoints nor in the published model.
    """

    title = "distillation from a frozen teacher"
    paper = "Fang et al., ICLR, arXiv:2101.04731"
    year = 2021
    views = "single"
    preset = "moco_v2"
    state = "queue"
    min_positions = 2
    local_options = ("teacher_weights",)

    def __init__(
        self,
        network: MsclForPreTraining,
        teacher: str | None = None,
        teacher_weights: str | None = None,
        teacher_pretrained: bool = False,
        token_loss: Literal["cosine", "relations"] = "cosine",
        temperature: float = 0.07,
        queue_size: int = 8192,
    ):
        """teacher: a timm name; teacher_weights: a safetensors file with its weights, or teacher_pretrained: those of the Hub."""
        super().__init__(network)
        check_choice("--token-loss", token_loss, TOKEN_LOSSES)
        self.check_given({"teacher": teacher, "teacher_weights": teacher_weights, "teacher_pretrained": teacher_pretrained})
        self.teacher_name, self.teacher_file, self.token_loss, self.temperature = teacher, teacher_weights, token_loss, temperature
        bands = network.config.num_channels
        # In a list, so that it is no submodule: checkpoints, DistributedDataParallel and the published model leave it out.
        self.hidden_modules = [open_teacher(teacher, teacher_weights, network.config.image_size, bands)]
        statistics = image_statistics(self.teacher.config if bands == 3 else network.config)  # of other bands, those of the images
        for name, values in zip(("teacher_mean", "teacher_std"), statistics):
            self.register_buffer(name, values, persistent=False)
        self.levels = min(len(network.backbone.channels), len(self.teacher.channels))
        own, target = (list(backbone.channels[-self.levels :]) for backbone in (network.backbone, self.teacher))
        if "decoder" in self.parts():
            own, target = [*own, network.config.decoder_channels], [*target, target[-1]]
        self.projections = nn.ModuleList(nn.Conv2d(*channels, 1) for channels in zip(own, target))
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
            expected = "expected --teacher-weights FILE.safetensors, or --teacher-pretrained for those of the Hub"
            raise ValueError(f"--teacher is {name} without weights; {expected}. Give one of them.")

    @property
    def teacher(self) -> nn.Module:
        """The frozen backbone."""
        return self.hidden_modules[0]

    def _apply(self, fn, recurse: bool = True) -> "Distill":
        self.teacher._apply(fn)  # moves the teacher with the method
        return super()._apply(fn, recurse)

    def facts(self) -> dict[str, str]:
        license_name = timm.get_pretrained_cfg(self.teacher_name).license or "not stated by timm"
        if self.teacher_file:
            weights = f"{self.teacher_name}, weights {Path(self.teacher_file).name}"
            return {"teacher": weights, "license of timm's weights for the teacher": license_name}
        return {"teacher": hub_weights(self.teacher_name), "license of the teacher": license_name}

    @torch.no_grad()
    def teacher_maps(self, image: Tensor) -> list[Tensor]:
        """Return the teacher's map (B, F, h, w) of each level for images with values in [0, 255]."""
        maps = self.teacher(normalize(image, self.teacher_mean, self.teacher_std)).feature_maps[-self.levels :]
        maps = [standardized(at_least_float32(each)) for each in maps]
        return maps + maps[-1:] * (len(self.projections) - self.levels)

    def student_maps(self, image: Tensor) -> list[Tensor]:
        """Return the student's map (B, F, h', w') of each level in the space of the teacher."""
        parts = self.parts()
        all_maps = list(parts["backbone"](self.normalize(image)).feature_maps)
        maps = all_maps[-self.levels :] + ([parts["decoder"](all_maps)] if "decoder" in parts else [])
        return [at_least_float32(projection(each)) for projection, each in zip(self.projections, maps)]

    def forward(self, image: Tensor, **_) -> dict[str, Tensor]:
        """image (B, 3, H, W) with values in [0, 255]."""
        teacher, student = self.teacher_maps(image), self.student_maps(image)
        student = [
            F.interpolate(own, size=target.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
            for own, target in zip(student, teacher)
        ]
        student_mean, teacher_mean = unit(student[-1].mean((2, 3))), unit(teacher[-1].mean((2, 3)))
        keys = torch.cat([gather_rows(teacher_mean)[0], self.queue.read()])
        loss_image = similarity_divergence(student_mean, teacher_mean, keys, keys, self.temperature)
        vectors = ([flatten_positions(unit(each)) for each in maps] for maps in (student, teacher))
        loss_tokens = sum(self.loss_of_tokens(own, target) for own, target in zip(*vectors))
        if self.training:
            self.queue.write(teacher_mean)
        return {"loss": loss_image + loss_tokens, "loss_image": loss_image.detach(), "loss_tokens": loss_tokens.detach()}

    def loss_of_tokens(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the positions (B, N, F) of student and teacher, unit vectors."""
        if self.token_loss == "cosine":
            return 1 - cosine_to_target(student.flatten(0, 1), teacher.flatten(0, 1))
        if teacher.shape[1] > MOST_POSITIONS:  # memory grows with the square of the number of positions
            chosen = torch.randperm(teacher.shape[1], device=teacher.device)[:MOST_POSITIONS]
            student, teacher = student[:, chosen], teacher[:, chosen]
        return similarity_divergence(student, teacher, student, teacher, self.temperature, exclude_self=True)

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        return super().embeddings(image) | {"projection": unit(self.student_maps(image)[-1].mean((2, 3)))}


def standardized(target: Tensor) -> Tensor:
    """Return a map (B, F, h, w) whose channels have mean 0 and deviation 1 over the batches of all processes."""
    centered = target - mean_count(target.mean((0, 2, 3), keepdim=True))
    variance = mean_count(centered.square().mean((0, 2, 3), keepdim=True))
    return centered * (variance + 1e-5).rsqrt()  # as BatchNorm: channels without variance become 0

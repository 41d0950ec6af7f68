"""Semi-supervised fine-tuning: predictions on strong views of unlabelled images follow an EMA teacher's predictions on a weak view.

The methods differ only in their rows of SEMI_SUPERVISED. To add one: a row, and its name in `SemiSupervisedConfig.semi_supervised`.
Letters: U unlabelled images of H x W px, V strong views, K classes, C_i channels of the tapped maps.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SemiSupervisedConfig, TrainingConfig
from ..losses import LABELLED_FROM, class_probabilities, mean_over_valid, summed_binary_cross_entropy, summed_squared_difference
from ..losses.arguments import at_least_float32
from ..losses.gather import mean_count
from ..losses.labels import IGNORE_INDEX
from ..messages import flag
from ..models.cross_entropy_mscl import summed_cross_entropy
from .creation import RunSize, fitting_momentum
from .segmentation import Contrasted, SegmentationTraining, decoded
from .teacher import EMANetwork, rising_momentum

CONTRAST_OPTIONS = ("pixel_contrast", "contrast_sampling", "contrast_temperature")  # also read without unlabelled images


class SemiSupervised(NamedTuple):
    """A row of `--list-semi-supervised`, and the defaults of its options. squared: the loss is the squared difference of probabilities
    instead of the cross-entropy with the teacher's labels. perturbed: the weak view under channel dropout is one more view, with half of
    the weight. complementary: the two strong views drop complementary channels. ema_momentum: 0 = the network is its own teacher.
    class_thresholds: the threshold of a class is lower, the less confident the teacher is of its pixels."""

    title: str
    paper: str
    year: int
    strong_views: int = 1
    squared: bool = False
    perturbed: bool = False
    complementary: bool = False
    unlabelled_weight: float = 1.0
    unlabelled_ramp: float = 0.0
    confidence_threshold: float = 0.95
    ema_momentum: float = 0.996
    cutmix_probability: float = 0.5
    class_thresholds: bool = False


OPTIONS = ("unlabelled_weight", "unlabelled_ramp", "confidence_threshold", "ema_momentum", "cutmix_probability")
SEMI_SUPERVISED: dict[str, SemiSupervised] = {
    "mean_teacher": SemiSupervised(
        "squared difference from an EMA teacher", "Tarvainen & Valpola, NeurIPS, arXiv:1703.01780", 2017, squared=True,
        unlabelled_ramp=0.25, confidence_threshold=0.0, ema_momentum=0.99, cutmix_probability=0.0,
    ),
    "fixmatch": SemiSupervised("confident labels of an EMA teacher, one strong view", "Sohn et al., NeurIPS, arXiv:2001.07685", 2020),
    "unimatch": SemiSupervised(
        "own confident labels, two strong views, perturbed features", "Yang et al., CVPR, arXiv:2208.09910", 2023,
        strong_views=2, perturbed=True, ema_momentum=0.0,
    ),
    "unimatch_v2": SemiSupervised(
        "confident labels of an EMA teacher, two strong views, complementary dropout", "Yang et al., TPAMI, arXiv:2410.10777", 2025,
        strong_views=2, complementary=True,
    ),
}  # fmt: skip


def semi_supervised_table() -> list[tuple[str, ...]]:
    """Return the rows of the registry, first the header."""
    rows = [("name", "method", "paper", "year", "options (default)")]
    for name, row in SEMI_SUPERVISED.items():
        options = " ".join(f"{flag(option)} ({getattr(row, option):g})" for option in OPTIONS)
        rows.append((name, row.title, row.paper, str(row.year), options))
    return rows


def check_semi_supervised(config: SemiSupervisedConfig, training: TrainingConfig, processes: int) -> None:
    """Raise ValueError for options that nothing reads, and for batches that cannot be divided over the processes."""
    name, unread = config.semi_supervised, [option for option in config.changed() if option not in CONTRAST_OPTIONS]
    for option in CONTRAST_OPTIONS[1:]:
        if option in config.changed() and not config.pixel_contrast:
            raise ValueError(f"{flag(option)} is {getattr(config, option)} without --pixel-contrast. Give it, or leave it out.")
    if name == "none":
        if unread:
            value, remedy = getattr(config, unread[0]), "Give --semi-supervised as well, or leave it out."
            raise ValueError(f"{flag(unread[0])} is {value}, and only semi-supervised fine-tuning reads it. {remedy}")
        return
    if config.unlabelled == "none":
        raise ValueError(f"--semi-supervised is {name}, and there are no unlabelled images. Give --unlabelled rest, or a folder of images.")
    if config.unlabelled_streaming and config.unlabelled == "rest":
        raise ValueError("--unlabelled is rest with --unlabelled-streaming; expected a folder of parquet files or a name on the Hub.")
    if config.class_thresholds and not used_row(config).confidence_threshold:
        raise ValueError("--class-thresholds lowers --confidence-threshold, which is 0. Leave it out, or give a threshold such as 0.8.")
    if training.shard:
        raise ValueError(f"--shard is given, and the teacher of --semi-supervised {name} is not sharded. Leave out one of them.")
    count, cutmix = config.unlabelled_batch_size or training.batch_size, used_row(config).cutmix_probability
    divisor, reason = (2 * processes, "in pairs for CutMix, on") if cutmix else (processes, "on")
    if count % divisor:
        remedy = "Change it, or give --cutmix-probability 0" if cutmix else "Change it"
        source = "" if config.unlabelled_batch_size else " (that of --batch-size)"
        raise ValueError(
            f"--unlabelled-batch-size is {count}{source}; expected a multiple of {divisor}, for images {reason} {processes} process(es). "
            f"{remedy}."
        )


def used_row(config: SemiSupervisedConfig) -> SemiSupervised:
    """Return the method with the options that are set in place of its defaults."""
    values = {name: getattr(config, name) for name in (*OPTIONS, "class_thresholds")}
    return SEMI_SUPERVISED[config.semi_supervised]._replace(**{name: value for name, value in values.items() if value is not None})


def create_training(
    network, loss, class_weights: Sequence[float] | None, config: SemiSupervisedConfig, run_size: RunSize,
    log: Callable[[str], None] = print,
) -> SegmentationTraining:  # fmt: skip
    """Return the training of a network with these options, semi-supervised or not. The EMA momentum is scaled to the run and logged."""
    contrast = {option: getattr(config, option) for option in CONTRAST_OPTIONS}
    if config.semi_supervised == "none":
        return SegmentationTraining(network, loss, class_weights, **contrast)
    row = used_row(config)
    if config.ema_momentum is None:
        row = row._replace(ema_momentum=fitting_momentum(row.ema_momentum, run_size.steps, log))
    return SemiSupervisedTraining(network, row, run_size.steps, config.publish, loss, class_weights, **contrast)


class Targets(NamedTuple):
    """What the teacher predicts for each pixel: labels (U, H, W), their probabilities confidence (U, H, W), probabilities (U, K, H, W) or
    None; inside (U, H, W): not padding."""

    labels: Tensor
    confidence: Tensor
    inside: Tensor
    probabilities: Tensor | None = None

    def mixed(self, boxes: Tensor) -> "Targets":
        """Return the targets of views that were mixed with these boxes."""
        return Targets(*(None if value is None else cutmix(value, boxes) for value in self))


def cutmix(values: Tensor, boxes: Tensor) -> Tensor:
    """Return values (U, ..., H, W) in which the rectangle of each image is that of its partner (CutMix, Yun et al., ICCV 2019).

    boxes (U, 4): top, left, bottom, right in px. The partner is the image half a batch away. It is on the same process if each process has
    an even number of images.
    """
    top, left, bottom, right = boxes.T[:, :, None, None]
    rows, columns = (torch.arange(side, device=boxes.device) for side in values.shape[-2:])
    inside = ((rows[:, None] >= top) & (rows[:, None] < bottom)) & ((columns >= left) & (columns < right))
    return torch.where(inside if values.dim() == 3 else inside[:, None], values.roll(len(values) // 2, 0), values)


def channel_factors(draws: Tensor, channels: Sequence[int], exempt: float = 0.0) -> list[Tensor]:
    """Return factors (U, C_i) of 0 or 2 with equal probability for the channels of each map; all 1 for a share `exempt` of the images.

    Maps with the same number of channels have the same factors: the maps of a ViT share the channels of its residual stream. draws (U,):
    the seed of each image.
    """
    rows: dict[int, list[Tensor]] = {}
    for seed in draws.tolist():
        generator = torch.Generator().manual_seed(seed)
        is_exempt = torch.rand((), generator=generator) < exempt
        for count in dict.fromkeys(channels):
            drawn = (torch.rand(count, generator=generator) < 0.5) * 2.0
            rows.setdefault(count, []).append(torch.ones_like(drawn) if is_exempt else drawn)
    return [torch.stack(rows[count]).to(draws.device) for count in channels]


class SemiSupervisedTraining(SegmentationTraining):
    """Fine-tuning with L = (L_labelled + w L_unlabelled) / (1 + w); w = 1 is the published 1/2 [...], w = 0 is plain fine-tuning.

    L_unlabelled is the mean over the views. row: the method with the options that are used. steps: of the run, for the schedule of the
    teacher. publish: whether the teacher or the network is measured and published.
    """

    title = "semi-supervised fine-tuning"
    state = "EMA teacher"

    def __init__(self, network, row: SemiSupervised, steps: int, publish: str = "teacher", *args, **options):
        super().__init__(network, *args, **options)
        self.method, self.steps, self.publish = row, steps, publish
        self.teacher = EMANetwork(network)
        if row.class_thresholds:
            self.register_buffer("class_confidence", torch.ones(network.config.num_labels))  # mean probability of the pixels of a class

    @property
    def averages(self) -> bool:
        """Whether the teacher is an average; with momentum 0 it is the network itself."""
        return self.method.ema_momentum > 0

    def restart_teacher(self) -> None:
        self.teacher.update({"network": self.network}, 0.0)

    def after_step(self, fraction_done: float) -> None:
        momentum = rising_momentum(self.method.ema_momentum, round(fraction_done * self.steps))
        self.teacher.update({"network": self.network}, momentum)

    def finish(self) -> None:
        if self.publish == "teacher":
            self.network.load_state_dict(self.teacher.network.state_dict())

    def facts(self) -> dict[str, str]:
        method, options = self.method, ", ".join(f"{name} {getattr(self.method, name):g}" for name in OPTIONS)
        published = "the EMA teacher" if self.publish == "teacher" and self.averages else "the trained network"
        options += ", class_thresholds" * method.class_thresholds
        facts = {"unlabelled images": f"{method.title} ({method.paper})", "semi-supervised options": options}
        return facts | {"published network": published} | super().facts()

    def weight(self) -> float:
        """Return the weight of the unlabelled images in this step: it rises by exp(-5 (1 - x)^2) (Laine & Aila, ICLR 2017)."""
        ramp = self.method.unlabelled_ramp
        rising = min(1.0, self.fraction_done / ramp) if ramp else 1.0
        return self.method.unlabelled_weight * math.exp(-5 * (1 - rising) ** 2)

    def forward(self, image: Tensor, mask: Tensor, weak: Tensor | None = None, **unlabelled) -> dict[str, Tensor]:
        """image, mask: labelled, see `SegmentationTraining`; the other tensors are those of `transforms.SemiSupervisedView`."""
        terms, output = self.supervised(image, mask)
        contrasted = [] if self.contrast is None else [Contrasted(output.features, output.logits, mask.long())]
        weight = 0.0 if weak is None else self.weight()
        if weight:
            loss, kept_share, of_view = self.unlabelled(weak, **unlabelled)
            logged = {"kept_share": kept_share, "loss_labelled": terms["loss"].detach(), "loss_unlabelled": loss.detach()}
            terms = terms | {"loss": (terms["loss"] + weight * loss) / (1 + weight)} | logged
            contrasted.append(of_view)
        return terms if self.contrast is None else self.with_contrast(terms, Contrasted(*map(torch.cat, zip(*contrasted))))

    def unlabelled(self, weak: Tensor, inside: Tensor, boxes: Tensor, draws: Tensor, **batch) -> tuple[Tensor, Tensor, Contrasted]:
        """Return the loss of unlabelled images, the share of confident pixels, and the first strong view; labels: 255 = not confident."""
        method, network = self.method, self.network
        targets, factors = self.targets(weak, inside), None
        if method.class_thresholds:
            self.follow_confidence(targets)
        of_views = [targets.mixed(of_view) for of_view in boxes.unbind(1)]
        views = [cutmix(batch[f"strong{number}"], of_view) for number, of_view in enumerate(boxes.unbind(1), 1)]
        if method.complementary:
            factors = [torch.cat([m, 2 - m]) for m in channel_factors(draws, network.backbone.channels, exempt=0.5)]
        output = decoded(network, self.normalize(torch.cat(views)), factors, auxiliary=False)
        losses = [self.consistency(logits, of_view) for logits, of_view in zip(output.logits.chunk(len(views)), of_views)]
        loss = torch.stack(losses).mean()
        if method.perturbed:
            factors = channel_factors(draws, network.backbone.channels)
            perturbed = decoded(network, self.normalize(weak), factors, auxiliary=False)
            loss = (loss + self.consistency(perturbed.logits, targets)) / 2
        share = self.is_kept(targets).sum() / inside.sum().clamp(min=1)
        return loss, share, Contrasted(output.features[: len(weak)], output.logits[: len(weak)], self.contrast_labels(of_views[0]))

    def contrast_labels(self, targets: Targets) -> Tensor:
        """Return the labels (U, H, W) of the contrast, 255 = none: those that are trained on; with ReCo's sampling also less certain ones,
        its anchors."""
        is_reco = self.contrast is not None and self.contrast.sampling == "reco"
        is_labelled = targets.inside & (targets.confidence >= LABELLED_FROM) if is_reco else self.is_kept(targets)
        return torch.where(is_labelled, targets.labels, IGNORE_INDEX)

    @torch.no_grad()
    def targets(self, weak: Tensor, inside: Tensor) -> Targets:
        """Return the teacher's predictions for weak views (U, 3, H, W) in [0, 255].

        Logits are resized one image at a time; only the squared loss keeps the probabilities of all images.
        """
        all_logits, probabilities = at_least_float32(self.teacher(self.normalize(weak))), None
        labels, confidence = torch.empty_like(inside, dtype=torch.long), torch.empty_like(inside, dtype=all_logits.dtype)
        if self.method.squared:
            probabilities = all_logits.new_empty(len(weak), all_logits.shape[1], *inside.shape[1:])
        for index, logits in enumerate(all_logits):
            resized = F.interpolate(logits[None], size=inside.shape[1:], mode="bilinear", align_corners=False)
            of_image = class_probabilities(resized, self.row.sigmoid)[0]
            confidence[index], labels[index] = of_image.max(0)
            if probabilities is not None:
                probabilities[index] = of_image
        return Targets(labels, confidence, inside, probabilities)

    def is_kept(self, targets: Targets) -> Tensor:
        """Return which pixels (U, H, W) are trained on."""
        threshold = self.method.confidence_threshold
        if self.method.class_thresholds:
            threshold = (threshold * self.class_confidence / self.class_confidence.max())[targets.labels]
        return targets.inside & (targets.confidence >= threshold)

    @torch.no_grad()
    def follow_confidence(self, targets: Targets) -> None:
        """Average the mean probability of the pixels of each predicted class over the steps, and over all processes.

        The threshold of a class is the part of this mean in the largest one, as in FreeMatch (Wang et al., ICLR 2023, arXiv:2205.07246),
        which averages the probabilities of all pixels instead: for a rare class, that is near zero.
        """
        of_class = [targets.inside & (targets.labels == label) for label in range(len(self.class_confidence))]
        sums = mean_count(torch.stack([(targets.confidence * where).sum() for where in of_class]))
        counts = mean_count(torch.stack([where.sum() for where in of_class]).to(sums.dtype))
        momentum = rising_momentum(self.method.ema_momentum, round(self.fraction_done * self.steps))
        average = momentum * self.class_confidence + (1 - momentum) * sums / counts.clamp(min=1e-12)
        self.class_confidence.copy_(torch.where(counts > 0, average, self.class_confidence))

    def consistency(self, logits: Tensor, targets: Targets) -> Tensor:
        """Return the loss of logits (U, K, h, w) of a view: a mean over the pixels that are not padding."""
        kept, size = self.is_kept(targets), targets.labels.shape[-2:]
        if self.method.squared or self.row.sigmoid:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.method.squared:
            total = summed_squared_difference(logits, targets.probabilities, kept, self.row.sigmoid)
        elif self.row.sigmoid:
            total = summed_binary_cross_entropy(logits, targets.labels, kept)
        else:
            total = summed_cross_entropy(logits, targets.labels, kept)
        return mean_over_valid(total, targets.inside)

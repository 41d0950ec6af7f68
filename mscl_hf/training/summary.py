"""What a pre-training run has learnt, from the health checks in its log."""

from dataclasses import dataclass
from pathlib import Path

from ..config import TrainingConfig
from ..config.data import OWN_DATA
from ..config.training import DEFAULT_STEPS
from .health import warnings_of
from .log import read_log

PROBE, RANK, SPREAD = "probe_mean_iou", "effective_rank_", "spread_"
REAL_STEPS = 5000  # from which a run is no quick look


@dataclass(frozen=True)
class Checks:
    """The values of the first health check, before training, and of the last one; {} where there was none."""

    first: dict[str, float]
    last: dict[str, float]

    @property
    def probe(self) -> tuple[float, float] | None:
        """Return the mean IoU of the linear probe before and after training; None where it was not measured."""
        return (self.first[PROBE], self.last[PROBE]) if PROBE in self.first and PROBE in self.last else None

    def in_sentences(self) -> list[str]:
        """Return what a linear probe reads from the features before and after training, and the state of the embeddings."""
        sentences = []
        if self.probe is not None:
            before, after = self.probe
            sentences.append(f"linear probe mean IoU: {before:.3f} before training, {after:.3f} after it")
        spaces = [key.removeprefix(RANK) for key in self.last if key.startswith(RANK)]
        if spaces:
            values = [f"{space} {self.last[RANK + space]:.0f} and {self.last[SPREAD + space]:.2f}" for space in spaces]
            state = " ".join(warnings_of(self.last, self.first.get(PROBE, 0.0))) or "no collapse."
            sentences.append(f"health: effective rank and spread of the embeddings are {', '.join(values)}: {state}")
        return sentences


def longer_run(out: Path, options: TrainingConfig, images: int | None, dataset: str) -> list[str]:
    """Return what a run of REAL_STEPS would take, where data of one's own was trained on for no more than the default number of steps.

    images: number of training images, None for a stream.
    """
    rows = [row for row in read_log(out / "log.jsonl") if "images_per_second" in row]
    if dataset not in OWN_DATA or options.max_steps > DEFAULT_STEPS or not rows:
        return []
    batch = options.batch_size * options.gradient_accumulation_steps
    epochs = f" ({options.max_steps * batch / images:.2g} epochs)" if images else ""
    hours = REAL_STEPS * batch * sum(1 / row["images_per_second"] for row in rows) / len(rows) / 3600
    return [
        f"{options.max_steps} steps{epochs} are a quick look; --max-steps {REAL_STEPS} or more are a real run, of {hours:.2g} hours at the "
        "measured speed"
    ]


def read_checks(out: Path) -> Checks:
    """Return the health checks of a run; those of the first stage of several are the first."""
    paths = [*sorted(out.glob("stage*/log.jsonl")), out / "log.jsonl"]
    rows = [row for path in paths for row in read_log(path) if any(key == PROBE or key.startswith(RANK) for key in row)]
    return Checks(rows[0] if len(rows) > 1 else {}, rows[-1] if rows else {})

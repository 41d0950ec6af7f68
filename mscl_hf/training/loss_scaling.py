"""Loss scaling for fp16, whose smallest number is 6e-8: losses are multiplied by a scale, and gradients divided by it again."""

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

MAX_SKIPPED = 20  # steps in a row: from the first scale, 2^16, to 1/16, at which the scale is no longer the cause


def support_fp16_on_cpu(accelerator: Accelerator) -> None:
    """Let an Accelerator on a CPU compute in fp16 and scale losses; Accelerate itself would silently compute in fp32 there."""
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")


class LossScaling:
    """The loss scale of a run and the steps that were skipped; without fp16, nothing is scaled and no step may be skipped.

    The scale is that of Accelerate's GradScaler: it starts at 2^16, halves after a step whose gradient overflows, and doubles after 2,000
    steps without an overflow.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.scaler = accelerator, accelerator.scaler
        self.skipped = self.skipped_in_a_row = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the scaled loss."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizer: AcceleratedOptimizer) -> None:
        """Divide the gradients by the scale."""
        self.accelerator.unscale_gradients(optimizer)

    def skip(self) -> None:
        """Count a step whose gradient is not finite, and halve the scale; called instead of `optimizer.step()`."""
        self.scaler.update()
        self.skipped += 1
        self.skipped_in_a_row += 1

    def accept(self) -> dict[str, float]:
        """Count a step with a finite gradient; return its scale for the log."""
        self.skipped_in_a_row = 0
        return {} if self.scaler is None else {"grad_scale": self.scaler.get_scale()}

    def state(self) -> dict:
        """Return what a checkpoint holds of it; {} without fp16."""
        if self.scaler is None:
            return {}
        counts = {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        return {"loss_scaling": counts | {"scaler": self.scaler.state_dict()}}

    def load(self, state: dict) -> None:
        """Continue from the state in a checkpoint."""
        if self.scaler is not None:
            stored = state["loss_scaling"]
            self.skipped, self.skipped_in_a_row = stored["skipped"], stored["skipped_in_a_row"]
            self.scaler.load_state_dict(stored["scaler"])

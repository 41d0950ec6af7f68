"""A DDP step of every semi-supervised method on this process's part of a batch, and the teacher after it; saves losses and gradients.

    python tests/distributed/semi_worker.py RANK WORLD FOLDER
"""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "methods"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import methods_worker
import test_semi_supervised as semi

from mscl_hf.methods.semi_supervised import SEMI_SUPERVISED

CASES = {name: (name, {}) for name in SEMI_SUPERVISED}
CASES["fixmatch, class thresholds"] = "fixmatch", {"class_thresholds": True}
for sampling in ("all", "reco"):
    CASES[f"fixmatch, contrast of {sampling}"] = "fixmatch", {"pixel_contrast": 0.5, "contrast_sampling": sampling}


def step(case, rank=0, world=1):
    """Return losses, gradients and the teacher of a second step. Every process has every world-th image of each part."""
    name, options = CASES[case]
    method = semi.training(name, dropout=0.0, confidence_threshold=0.129, unlabelled_ramp=0.0, **options).double().train()
    methods_worker.sync(method)
    batch = next(semi.semi_data(name, added=8).batches(0, 1, rank, world))
    model = DistributedDataParallel(method) if world > 1 else method
    for number in (1, 2):
        method.zero_grad()
        terms = model(**batch)
        terms["loss"].backward()
        if number == 1:
            with torch.no_grad():
                for p in method.parameters():
                    p.add_(0 if p.grad is None else -0.01 * p.grad)
            method.after_step(0.5)
    teacher = {key: value.double() for key, value in method.teacher.state_dict().items()}
    losses = {key: value.detach() for key, value in terms.items() if key not in ("kept_share", "loss_auxiliary")}
    return losses, {key: p.grad for key, p in method.named_parameters() if p.grad is not None}, teacher


if __name__ == "__main__":
    torch.set_num_threads(1)
    methods_worker.main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), CASES, step)

"""A DDP step of every method on this process's part of a batch of eight; saves losses, gradients and memories.

    python tests/distributed/methods_worker.py RANK WORLD FOLDER
"""

import contextlib
import os
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

from mscl_hf.losses import MultiScaleLoss, ReleasedPixelLoss
from mscl_hf.losses.gather import world_size
from mscl_hf.methods import METHODS
from mscl_hf.training.setup import exclude_memories_from_broadcast, freeze_unreached

IMAGES = 8
# Options under which a method runs another loss.
CASES = {name: (name, {}) for name, method_cls in METHODS.items() if method_cls.trains} | {
    "instdisc, nce": ("instdisc", {"bank_loss": "nce", "nce_draws": 5}),
    "cmc, nce": ("cmc", {"bank_loss": "nce", "nce_draws": 5}),
    "cmc, batch": ("cmc", {"bank_loss": "batch"}),
    "pixpro, instance branch": ("pixpro", {"instance_weight": 1.0}),
    "pixpro, empty pairs as zero": ("pixpro", {"match_empty": "zero"}),
    "cp2, over queries": ("cp2", {"dense_axis": "query"}),
    "zhao_within, released": ("zhao_within", {"variant": "released"}),
    "zhao_cross, released": ("zhao_cross", {"variant": "released"}),
    "chaitanya, GD": ("chaitanya_global", {"variant": "GD", "partitions": 2}),
    "chaitanya, GD-": ("chaitanya_global", {"variant": "GD-", "partitions": 2}),
}


class SyncedNorm(nn.Module):
    """BatchNorm with the statistics of all processes, as torch's SyncBatchNorm has them on GPUs."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        if not self.training:
            return self.norm(x)
        over = [0, *range(2, x.dim())]
        mean = self._mean(x, over)
        deviation = (self._mean((x - mean).square(), over) + self.norm.eps).sqrt()
        x = (x - mean) / deviation
        if self.norm.affine:
            shape = [1, -1] + [1] * (x.dim() - 2)
            x = x * self.norm.weight.view(shape) + self.norm.bias.view(shape)
        for name in ("act", "drop"):  # timm's norms carry their activation
            x = getattr(self.norm, name)(x) if hasattr(self.norm, name) else x
        return x

    @staticmethod
    def _mean(x, over):
        mean = x.mean(over, keepdim=True)
        return all_reduce(mean) / world_size() if world_size() > 1 else mean


def sync(module):
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, SyncedNorm(child))
        else:
            sync(child)


def neighbors(count, device=None):
    """Partners in the same half of the batch, for any number of processes."""
    return torch.arange(count, device=device) ^ 1


def draws(high, size, device=None):
    """The same draws for each image, for any number of processes."""
    return (torch.arange(size[1], device=device) * 3 % high).expand(size)


@contextlib.contextmanager
def same_chance():
    """Replace random partners and noise, which each process draws by itself, by equal ones."""
    with (
        mock.patch.object(MultiScaleLoss, "draw_partners", staticmethod(neighbors)),
        mock.patch.object(ReleasedPixelLoss, "draw_partners", staticmethod(neighbors)),
        mock.patch.object(torch, "randint", draws),
    ):
        yield


def batch_of(name):
    batch = next(harness.method_data(name, batch=IMAGES).batches(0, 1))
    position = torch.tensor([0.1, 0.9, 0.2, 0.1, 0.8, 0.9, 0.1, 0.3])
    return batch | {"volume": torch.tensor([0, 0, 1, 1, 0, 2, 2, 0]), "position": position}


def part_of(batch, rank, world):
    each = IMAGES // world
    mine = slice(rank * each, (rank + 1) * each)
    part = {key: value[mine] for key, value in batch.items() if key != "labelled"}
    return part | {"labelled": torch.arange(each) if len(batch["labelled"]) else batch["labelled"]}


def step(case, rank=0, world=1):
    """Return losses, gradients and memories of the second step, when memories hold embeddings of all processes."""
    name, options = CASES[case]
    method = harness.pretraining_method(name, batch=IMAGES, **options).double().train()
    sync(method)
    batch = batch_of(name)
    with same_chance():
        freeze_unreached(method, part_of(batch, rank, world), harness.fresh_accelerator())
    exclude_memories_from_broadcast(method)
    model = DistributedDataParallel(method) if world > 1 else method
    for number in range(2):
        method.zero_grad()
        with same_chance():
            terms = model(**part_of(batch, rank, world))
        terms["loss"].backward()
        if not number:
            method.after_step(0.5)
    state = {key: value.double() for key, value in method.state_dict().items() if key.startswith(("queue", "instance", "banks"))}
    losses = {key: value.detach() for key, value in terms.items()}
    return losses, {key: p.grad for key, p in method.named_parameters() if p.grad is not None}, state


def main(rank: int, world: int, folder: Path, cases=CASES, step=step):
    """Save what step(case, rank, world) returns for each case; the losses are averaged over the processes."""
    harness.fresh_accelerator = lambda: Context()
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    results = {}
    for case in cases:
        losses, gradients, state = step(case, rank, world)
        for value in losses.values():  # as the log averages them; DDP averages gradients
            dist.all_reduce(value)
            value /= world
        results[case] = losses, gradients, state
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort the interpreter while it shuts down, all work done


class Context:
    """The part of an Accelerator that `freeze_unreached` uses."""

    device = torch.device("cpu")

    @staticmethod
    def autocast():
        return torch.autocast("cpu", enabled=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

"""A step of a tiny encoder with each loss, on this process's part of a batch of eight; saves terms and gradients.

    python tests/distributed/losses_worker.py RANK WORLD FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mscl_hf.losses import MultiScaleLoss, sample_pixels

IMAGES, BLOCKS, PIXELS = 8, 4, 10
HALVES = ((0, 1, 2, 3), (4, 5, 6, 7))
# Which images of each process carry labels. An image may be labelled and hold ignored pixels only: number 5 does.
EVEN, UNEVEN, ONE_SIDED = ((0, 1), (4, 5)), ((0, 1, 2), (4,)), ((0, 2), ())
CASES = {
    "g others": (dict(losses="g"), EVEN),
    "g ntxent": (dict(losses="g", negatives="ntxent"), EVEN),
    "g symmetric": (dict(losses="g", symmetric=True), EVEN),
    "g literal": (dict(losses="g", denominator="literal"), EVEN),
    "l batch": (dict(losses="l"), EVEN),
    "l others": (dict(losses="l", local_scope="others"), EVEN),
    "l image": (dict(losses="l", local_scope="image"), EVEN),
    "l symmetric": (dict(losses="l", local_scope="others", symmetric=True), EVEN),
    "p within": (dict(losses="p"), EVEN),
    "p within, uneven": (dict(losses="p"), UNEVEN),
    "p within, uneven, class": (dict(losses="p", anchor_weight="class", symmetric=True), UNEVEN),
    "p within, one process without labels": (dict(losses="p"), ONE_SIDED),
    "p batch": (dict(losses="p", pixel_scope="batch"), EVEN),
    "p batch, class": (dict(losses="p", pixel_scope="batch", anchor_weight="class", exclude_classes=[1]), EVEN),
    "p batch, neg, symmetric": (dict(losses="p", pixel_scope="batch", pixel_denominator="neg", symmetric=True), EVEN),
    "p batch, so many of a class": (dict(losses="p", pixel_scope="batch", pixel_sample="class", pixel_count=1000), EVEN),
    "all": (dict(losses="g+l+p", global_weight=0.3, local_scope="others"), UNEVEN),
}


def data():
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(IMAGES, PIXELS, 6, generator=generator) for _ in range(2)]
    labels = torch.randint(3, (IMAGES, PIXELS), generator=generator)
    labels[torch.rand(IMAGES, PIXELS, generator=generator) < 0.3] = 255
    labels[5], labels[0, 3:] = 255, 255  # so that processes and images differ in the number of valid pixels
    return views, labels


def step(name, images, labelled):
    """Return loss terms and the gradient of a shared weight on some images; those of `labelled` have masks."""
    options, _ = CASES[name]
    views, labels = data()
    weight = torch.linspace(-1, 1, 30).view(6, 5).sin().requires_grad_()

    def embed(x):
        z = F.normalize(x @ weight, dim=-1)
        mean = F.normalize(z[list(images)].mean(1), dim=-1)
        return {"global": mean, "local": z[list(images)][:, :BLOCKS], "pixel": z[list(labelled)]}

    first, second, masks = embed(views[0]), embed(views[1]), labels[list(labelled)]
    if options.get("pixel_sample") == "class":
        indices, masks = sample_pixels(masks, "class", options["pixel_count"])
        for embeds in (first, second):
            embeds["pixel"] = embeds["pixel"].gather(1, indices[..., None].expand(-1, -1, embeds["pixel"].shape[2]))
    terms = MultiScaleLoss(**{"pixel_scope": "within"} | options)(first, second, masks)
    terms["loss"].backward()
    return {**{key: value.detach() for key, value in terms.items()}, "gradient": weight.grad}


def main(rank: int, world: int, folder: Path):
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    results = {}
    for name, (_, labelled) in CASES.items():
        results[name] = step(name, HALVES[rank], labelled[rank])
        for value in results[name].values():  # as DDP averages gradients, and the log terms
            dist.all_reduce(value)
            value /= world
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort the interpreter while it shuts down, all work done


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

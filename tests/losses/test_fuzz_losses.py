"""Label sets and embeddings at their extremes: every loss stays finite and keeps its graph."""


import torch
import torch.nn.functional as F
from fuzz import fuzzed, stated
from hypothesis import strategies as st

from mscl_hf import losses
from mscl_hf.config import FinetuningLossConfig
from mscl_hf.config.contrast import SUBSETS
from mscl_hf.losses.info_nce import DENOMINATORS, GLOBAL_NEGATIVES, LOCAL_SCOPES
from mscl_hf.losses.pixel_contrast import ANCHOR_WEIGHTS, REDUCTIONS, SCOPES
from mscl_hf.losses.pixel_contrast import DENOMINATORS as PIXEL_DENOMINATORS
from mscl_hf.losses.slices import REGIONS
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES, Predicted, loss_terms

SEEDS = st.integers(0, 999)
LABEL_SETS = ("ignored", "one class", "one pixel", "two classes", "any", "all different")
VECTORS = ("any", "equal", "zero", "opposite")
TEMPERATURES = st.sampled_from([0.02, 0.07, 0.2, 1.0, 30.0])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])  # those trained in: float16 has no gradient of a vector of zeros


def labels_of(kind: str, shape: tuple, classes: int, seed: int) -> torch.Tensor:
    """Labels 0..classes-1 and 255."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, classes, shape, generator=generator)
    if kind in ("ignored", "one pixel"):
        keep = torch.zeros(found.numel(), dtype=torch.bool)
        keep[: kind == "one pixel"] = True
        return found.where(keep.view(shape), 255)
    if kind == "one class":
        return torch.full(shape, classes - 1)
    if kind == "two classes":
        return (found > 0).long() * (classes - 1)
    if kind == "all different":
        return (torch.arange(found.numel()) % classes).view(shape)
    return found.where(torch.rand(shape, generator=generator) > 0.3, 255)


def vectors_of(kind: str, shape: tuple, seed: int, dtype=torch.float32) -> torch.Tensor:
    """Return leaves of a graph: unit vectors, or zero ones, as from a dead head."""
    found = F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)
    if kind == "equal":
        found = found[(0,) * (len(shape) - 1)].expand(shape).clone() if 0 not in shape else found
    elif kind == "zero":
        found = torch.zeros(shape)
    elif kind == "opposite":
        found = found * torch.where(torch.arange(shape[0]) % 2 == 0, 1.0, -1.0).view(-1, *[1] * (len(shape) - 1))
    return found.to(dtype).requires_grad_()


def check_loss(loss: torch.Tensor, *leaves: torch.Tensor) -> None:
    """A finite scalar with a graph, whose gradients are finite where they reach."""
    assert loss.shape == () and loss.requires_grad and loss.isfinite()
    loss.backward()
    for leaf in leaves:
        assert leaf.grad is None or leaf.grad.isfinite().all()


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 14), st.integers(1, 14))
LABELS = {"labels": st.sampled_from(LABEL_SETS), "seed": SEEDS}


@fuzzed(name=st.sampled_from(sorted(FINETUNING_LOSSES)), shape=SHAPES, size=st.sampled_from([0.0, 1.0, 30.0, 3e4]), dtype=DTYPES, **LABELS)
def test_finetuning_losses(name, shape, size, dtype, labels, seed):
    """Labels, map sizes and logits of any size give a finite loss; RMI rejects a map smaller than its window."""
    batch, classes, height, width = shape
    logits = (vectors_of("any", shape, seed) * size).detach().to(dtype).requires_grad_()
    sizes = torch.zeros(2, classes, 3, requires_grad=True) if FINETUNING_LOSSES[name].learns_sizes else None
    target = labels_of(labels, (batch, 2 * height, 3 * width), classes, seed)
    with stated():
        terms, _ = loss_terms(FinetuningLossConfig(loss=name), Predicted(logits, target, 0.5, sizes))
        assert terms or name == "ce"
        if terms:
            check_loss(sum(weight * value for weight, value in terms.values()), logits, *([sizes] if sizes is not None else []))


@st.composite
def contrasts(draw) -> dict:
    """Options of the three scales together."""
    choices = {"negatives": GLOBAL_NEGATIVES, "local_scope": LOCAL_SCOPES, "pixel_scope": (None, *SCOPES), "denominator": DENOMINATORS}
    choices |= {"pixel_denominator": PIXEL_DENOMINATORS, "pixel_reduction": REDUCTIONS, "anchor_weight": ANCHOR_WEIGHTS}
    choices |= {"losses": SUBSETS, "loss_precision": ("fp32", "bf16"), "symmetric": (False, True)}
    found = {name: draw(st.sampled_from(known)) for name, known in choices.items()}
    found |= {name: draw(TEMPERATURES) for name in ("global_temperature", "local_temperature", "pixel_temperature")}
    return found | {"exclude_classes": draw(st.lists(st.integers(0, 4), max_size=5, unique=True))}


@fuzzed(options=contrasts(), loss_cls=st.sampled_from([losses.MultiScaleLoss, losses.ReleasedPixelLoss]),
        shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 4)), vectors=st.sampled_from(VECTORS),
        past=st.sampled_from([None, 0, 5]), **LABELS)  # fmt: skip
def test_scales(options, loss_cls, shape, vectors, past, labels, seed):
    """Global, local and pixel contrast in every combination are finite, or rejected (with one image, for example)."""
    images, labelled, pixels, classes = shape
    image, enhanced = (
        {head: vectors_of(vectors, (count, *many, 8), seed + more) for head, count, many in
         (("global", images, ()), ("local", images, (4,)), ("pixel", labelled, (pixels,)))}
        for more in (0, 1)
    )  # fmt: skip
    first, second = (labels_of(labels, (labelled, pixels), classes, seed + more) for more in (0, 1))
    with stated():
        loss = loss_cls(**options)
        terms = loss(image, enhanced, first, second, None if past is None else vectors_of(vectors, (past, 8), seed).detach())
        assert all(value.isfinite() for value in terms.values())
        check_loss(terms["loss"], *image.values(), *enhanced.values())


def single_losses(vectors: str, labels: str, seed: int, temperature: float, dtype) -> dict:
    """The other losses, each a function of two leaves (B, N, E)."""
    generator = torch.Generator().manual_seed(seed)
    batch, positions, width = 2, 9, 4
    mask = labels_of(labels, (2, batch, positions), 2, seed) == 1
    match = mask[0, :, :, None] & mask[1, :, None, :]
    rows, draws = torch.randint(0, 6, (batch,), generator=generator), torch.randint(0, 6, (batch, 3), generator=generator)
    bank = vectors_of(vectors, (6, width), seed + 2).detach()
    partition, volume = labels_of(labels, (2, batch * positions), 3, seed)
    regions = F.normalize(torch.randn(batch, len(REGIONS), width, generator=generator), dim=2)

    def slices(across: bool):
        return lambda a, b: losses.slice_contrast(torch.stack([a, b], 2).flatten(0, 1), partition, volume, temperature, across)

    def nce(a, b):
        normalizer = losses.nce_normalizer(a[:, 0], rows, bank, draws, temperature)
        return losses.instance_nce(a[:, 0], rows, bank, draws, normalizer, temperature)

    return {
        "cosine": lambda a, b: losses.cosine_to_target(a.flatten(0, 1), b.flatten(0, 1)),
        "dense": lambda a, b: losses.dense_contrast(a, b, losses.nearest_positions(a, b), bank.to(a.dtype), temperature),
        "dense alone": lambda a, b: losses.dense_contrast(a, b, losses.nearest_positions(a, b), bank[:0].to(a.dtype), temperature),
        "foreground": lambda a, b: losses.foreground_contrast(a, b, *mask, temperature),
        "foreground of the query": lambda a, b: losses.foreground_contrast(a, b, *mask, temperature, "query"),
        "foreground's mean": lambda a, b: losses.foreground_mean(a, mask[0]).sum(),
        "instances": lambda a, b: losses.instance_softmax(a[:, 0], rows, bank, temperature),
        "instances by noise": nce,
        "consistency": lambda a, b: losses.pixel_consistency(a, b, match),
        "consistency or zero": lambda a, b: losses.pixel_consistency(a, b, match, "zero"),
        "propagation": lambda a, b: losses.propagate(a, b).square().sum(),
        "matched": lambda a, b: losses.matched_contrast(a, b, match, temperature),
        "regions": lambda a, b: losses.region_contrast(regions.to(a.dtype) + a[:, :1], regions.to(b.dtype) + b[:, :1], temperature),
        "slices": slices(False),
        "slices of volumes": slices(True),
    }


SINGLE = sorted(single_losses("any", "any", 0, 1.0, torch.float32))


@fuzzed(name=st.sampled_from(SINGLE), vectors=st.sampled_from(VECTORS), temperature=TEMPERATURES, dtype=DTYPES, **LABELS)
def test_other_losses(name, vectors, temperature, dtype, labels, seed):
    """Without foreground, without a match, without a negative: finite, with finite gradients."""
    a, b = (vectors_of(vectors, (2, 9, 4), seed + more, dtype) for more in (0, 1))
    loss = single_losses(vectors, labels, seed, temperature, dtype)[name](a, b)
    check_loss(loss, a, b)

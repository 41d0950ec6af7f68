"""The streamed log-sum-exp of similarities: its values and all its gradients are those of the plain formula in float64."""

import math
import subprocess
import sys
from itertools import product

import harness
import pytest
import torch
import torch.nn.functional as F

from mscl_hf.losses import global_contrast, local_contrast, pixel_contrast, streamed
from mscl_hf.losses.streamed import NOTHING, in_blocks, similarity_logsumexp


def plain(anchors, keys, temperature, bias=None):
    s = anchors @ keys.transpose(1, 2) / temperature
    return (s if bias is None else s + bias[:, None]).logsumexp(2)


def case(dtype, masked, temperature, anchors=70, count=131, dim=24, bags=2):
    generator = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(bags, n, dim, generator=generator), dim=-1) for n in (anchors, count))
    bias = torch.where(torch.rand(bags, count, generator=generator) < 0.3, NOTHING, 0.0) if masked else None
    weight = torch.randn(bags, anchors, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return q.to(dtype), k.to(dtype), torch.tensor(temperature, dtype=wide), bias, weight


def value_and_gradients(function, q, k, temperature, bias, weight):
    q, k, temperature = (x.detach().clone().requires_grad_() for x in (q, k, temperature))
    value = function(q, k, temperature, bias)
    (value * weight).sum().backward()
    return [x.detach().double() for x in (value, q.grad, k.grad, temperature.grad)]


@pytest.mark.parametrize("route", ["fused", "blocks"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 0.07, 1e-3])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 6e-3)])
def test_values_and_gradients(monkeypatch, route, masked, temperature, dtype, accuracy):
    """To 1e-5 in float32 (1e-4 at a temperature of 1e-3, where logits reach 1000), to 6e-3 with bfloat16 products of the same inputs."""
    if route == "blocks":
        monkeypatch.setattr(streamed, "attend", streamed._attend_in_blocks)
        monkeypatch.setattr(streamed, "CELLS_AT_ONCE", 1000)  # 3 rows at a time
    q, k, t, bias, weight = case(dtype, masked, temperature)
    found = value_and_gradients(similarity_logsumexp, q, k, t, bias, weight)
    wanted = value_and_gradients(plain, q.double(), k.double(), t.double(), bias, weight)
    limit = max(accuracy, 1e-4) if temperature == 1e-3 and dtype != torch.float64 else accuracy
    for name, x, y in zip(("value", "anchors", "keys", "temperature"), found, wanted):
        assert (x - y).norm() <= limit * y.norm(), name


def transposed(x):
    """The same numbers, the last axis not the one that runs fastest in memory: so a feature map becomes a list of pixels."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_memory_layout_changes_nothing(dtype):
    """Strided anchors, keys, bias and incoming gradient give the very numbers of contiguous ones."""
    q, k, t, bias, weight = case(dtype, True, 0.07)
    wanted = value_and_gradients(similarity_logsumexp, q, k, t, bias, weight)
    strided = [transposed(x) for x in (q, k)], [transposed(x) for x in (bias, weight)]
    assert not any(x.is_contiguous() for part in strided for x in part)
    found = value_and_gradients(similarity_logsumexp, *strided[0], t, *strided[1])
    for x, y in zip(found[:3], wanted[:3]):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_degenerate_inputs_stay_finite(dtype):
    """No key that counts, one anchor and one key, identical and zero vectors: finite values and gradients."""
    nothing = value_and_gradients(similarity_logsumexp, *case(dtype, False, 0.07)[:3], torch.full((2, 131), NOTHING), torch.ones(2, 70))
    assert all(x.isfinite().all() for x in nothing) and not any(x.any() for x in nothing[1:])
    one = value_and_gradients(similarity_logsumexp, *case(dtype, False, 1e-3, 1, 1)[:4], torch.ones(2, 1))
    assert all(x.isfinite().all() for x in one)
    same = torch.ones(1, 6, 8, dtype=dtype) / math.sqrt(8)
    for vectors in (same, torch.zeros_like(same)):
        found = value_and_gradients(similarity_logsumexp, vectors, vectors, torch.tensor(0.07), None, torch.ones(1, 6))
        assert all(x.isfinite().all() for x in found)
        assert found[0][0, 0].item() == pytest.approx(math.log(6) + vectors[0, 0].float().square().sum().item() / 0.07, abs=0.05)


def test_unfit_shapes_are_named():
    """A key of another width, or of another type, is one sentence."""
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(1, 2, 4\).*wanted \(G, N, D\)"):
        similarity_logsumexp(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), 0.1)
    with pytest.raises(ValueError, match="one dtype"):
        similarity_logsumexp(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).double(), 0.1)


@pytest.mark.parametrize("cells", [1, 50, 10**9])
def test_blocks_change_nothing(monkeypatch, cells):
    """Rows one by one, some, or all at once: the same values and gradients."""
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)

    def block(rows):
        return rows.square().logsumexp(1), rows.sum(1)

    monkeypatch.setattr(streamed, "CELLS_AT_ONCE", cells)
    whole, parts = block(x), in_blocks(block, (x,), 5)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts))
    gradients = [torch.autograd.grad((a * b).sum(), x)[0] for a, b in (whole, parts)]
    torch.testing.assert_close(*gradients)


MEMORY = """
import resource, torch, torch.nn.functional as F
from mscl_hf.losses import pixel_contrast
torch.set_num_threads(1)
def step(n):
    a, b = (F.normalize(torch.randn(1, n, 32), dim=-1).requires_grad_() for _ in range(2))
    pixel_contrast(a, b, torch.randint(0, 11, (1, n)), scope={scope!r}, denominator={denominator!r}).loss.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(step(256), step(8192))
"""


@pytest.mark.parametrize(("scope", "denominator", "megabytes"), [("batch", "all", 60), ("within", "all", 60), ("within", "neg", 700)])
def test_memory_of_many_pixels(scope, denominator, megabytes):
    """8,192 pixels against as many: a matrix of similarities would be 256 MB, and autograd would keep several of them."""
    code = MEMORY.format(scope=scope, denominator=denominator)
    done = subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert many - few < megabytes


def test_every_loss_agrees_with_the_plain_formula_on_either_route(monkeypatch):
    """Global with queue, local in all scopes, pixel in all scopes: row blocks of a few rows give what one piece gives."""
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(4, 9, 16, generator=generator).double(), dim=-1) for _ in range(2))
    y, past = torch.randint(0, 3, (4, 9), generator=generator), F.normalize(torch.randn(5, 16, generator=generator).double(), dim=-1)

    def losses():
        for negatives, queue in (("others", None), ("others", past), ("ntxent", None)):
            yield global_contrast(a[:, 0], b[:, 0], negatives=negatives, past=queue)
        for scope, denominator in product(("batch", "image", "others"), ("all", "literal")):
            yield local_contrast(a, b, scope=scope, denominator=denominator)
        for scope, (denominator, reduce) in product(("within", "cross", "batch"), (("all", "out"), ("all", "in"), ("neg", "out"))):
            yield pixel_contrast(a, b, y, scope=scope, denominator=denominator, reduce=reduce).loss

    whole = list(losses())
    monkeypatch.setattr(streamed, "CELLS_AT_ONCE", 20)
    monkeypatch.setattr(streamed, "attend", streamed._attend_in_blocks)
    for one, other in zip(whole, losses(), strict=True):
        assert other.item() == pytest.approx(one.item(), rel=1e-9)

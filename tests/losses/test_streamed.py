"""Streamed sums of contrastive terms: their values and all their gradients are those of the plain formula in float64."""

import math
import subprocess
import sys

import harness
import pytest
import torch
import torch.nn.functional as F
from test_losses import few_rows_at_once

from mscl_hf.losses.streamed import MASKED_SCORE, logsumexp, streamed_sum, with_autograd


def plain(anchors, keys, temperature, weights, bias=None, keep=None):
    s = anchors @ keys.transpose(1, 2) / temperature
    s = s if bias is None else s + bias[:, None]
    return ((s if keep is None else s.masked_fill(~keep, MASKED_SCORE)).logsumexp(2) * weights).sum()


def in_one(anchors, keys, temperature, weights, bias=None, keep=None):
    return streamed_sum(logsumexp(None if keep is None else lambda rows: keep[:, rows]), anchors, keys, temperature, weights, bias)


def by_autograd(anchors, keys, temperature, weights, bias=None, keep=None):
    def term(scores, rows):
        return (scores if keep is None else scores.masked_fill(~keep[:, rows], MASKED_SCORE)).logsumexp(2)

    return streamed_sum(with_autograd(term), anchors, keys, temperature, weights, bias)


def case(dtype, masked, temperature, anchors=70, count=131, dim=24, bags=2):
    """anchors, keys, temperature, weights, bias, keep"""
    generator = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(bags, n, dim, generator=generator), dim=-1) for n in (anchors, count))
    bias = torch.where(torch.rand(bags, count, generator=generator) < 0.3, MASKED_SCORE, 0.0) if masked else None
    keep = torch.rand(bags, anchors, count, generator=generator) < 0.7 if masked else None
    weights = torch.randn(bags, anchors, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return q.to(dtype), k.to(dtype), torch.tensor(temperature, dtype=wide), weights, bias, keep


def value_and_gradients(function, q, k, temperature, *rest):
    q, k, temperature = (x.detach().clone().requires_grad_() for x in (q, k, temperature))
    value = function(q, k, temperature, *rest)
    value.backward()
    return [x.detach().double() for x in (value, q.grad, k.grad, temperature.grad)]


@pytest.mark.parametrize("bags", [1, 2])
@pytest.mark.parametrize("cells", [1, 1000, 10**9])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 0.07, 1e-3])
@pytest.mark.parametrize(("function", "dtype", "accuracy"), [
    (in_one, torch.float64, 1e-9), (in_one, torch.float32, 1e-5), (in_one, torch.bfloat16, 1.5e-2),
    (by_autograd, torch.float64, 1e-9), (by_autograd, torch.float32, 1e-5),
])  # fmt: skip
def test_values_and_gradients(monkeypatch, function, bags, cells, masked, temperature, dtype, accuracy):
    """To 1e-5 in float32 (1e-4 at a temperature of 1e-3, where logits reach 1000), to 1.5e-2 with bfloat16 products of the same inputs;
    rows one by one, a few at a time, or all at once."""
    few_rows_at_once(monkeypatch, cells)
    q, k, t, *rest = case(dtype, masked, temperature, bags=bags)
    found = value_and_gradients(function, q, k, t, *rest)
    if dtype == torch.bfloat16 and temperature == 1e-3:  # scores near 1000 have steps of 8
        assert all(x.isfinite().all() for x in found)
        return
    wanted = value_and_gradients(plain, q.double(), k.double(), t.double(), *rest)
    limit = max(accuracy, 1e-4) if temperature == 1e-3 and dtype != torch.float64 else accuracy
    for name, x, y in zip(("value", "anchors", "keys", "temperature"), found, wanted):
        assert (x - y).norm() <= limit * y.norm(), name


def test_nothing_is_computed_that_nobody_asks_for():
    """Without gradient the value is the same, and has no graph."""
    q, k, t, *rest = case(torch.float32, False, 0.07)
    with torch.no_grad():
        value = in_one(q.requires_grad_(), k, t, *rest)
    assert not value.requires_grad and value.item() == in_one(q, k, t, *rest).item()
    assert not in_one(q.detach(), k, t, *rest).requires_grad
    for wanted in range(3):  # one at a time: the same gradients
        given = [x.detach().clone().requires_grad_(place == wanted) for place, x in enumerate((q, k, t))]
        in_one(*given, *rest).backward()
        every = value_and_gradients(in_one, q.detach(), k, t, *rest)[1 + wanted]
        torch.testing.assert_close(given[wanted].grad.double(), every)


def test_autocast_changes_nothing():
    """Neither the products nor the sums are lowered."""
    q, k, t, *rest = case(torch.float32, True, 0.07)
    wanted = value_and_gradients(in_one, q, k, t, *rest)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(in_one, q, k, t, *rest)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted))


def transposed(x):
    """The same numbers, the last axis not the one that runs fastest in memory: so a feature map becomes a list of pixels."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_memory_layout_changes_nothing(dtype):
    """Strided anchors, keys, bias and incoming gradient give the numbers of contiguous ones."""
    q, k, t, weights, bias, keep = case(dtype, True, 0.07)
    wanted = value_and_gradients(in_one, q, k, t, weights, bias, keep)
    q, k, weights, bias, keep = (transposed(x) for x in (q, k, weights, bias, keep))
    assert not any(x.is_contiguous() for x in (q, k, weights, bias, keep))
    found = value_and_gradients(in_one, q, k, t, weights, bias, keep)
    for x, y in zip(found[:3], wanted[:3]):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_degenerate_inputs_stay_finite(dtype):
    """No key that counts, one anchor and one key, identical and zero vectors: finite values and gradients."""
    q, k, t, weights = case(dtype, False, 0.07)[:4]
    nothing = value_and_gradients(in_one, q, k, t, weights.abs(), torch.full((2, 131), MASKED_SCORE))
    assert all(x.isfinite().all() for x in nothing) and not any(x.any() for x in nothing[1:])
    one = value_and_gradients(in_one, *case(dtype, False, 1e-3, 1, 1)[:4])
    assert all(x.isfinite().all() for x in one)
    same = torch.ones(1, 6, 8, dtype=dtype) / math.sqrt(8)
    for vectors in (same, torch.zeros_like(same)):
        found = value_and_gradients(in_one, vectors, vectors, torch.tensor(0.07), torch.full((1, 6), 1 / 6))
        assert all(x.isfinite().all() for x in found)
        assert found[0].item() == pytest.approx(math.log(6) + vectors[0, 0].float().square().sum().item() / 0.07, abs=0.05)


def test_unfit_shapes_are_named():
    """A key of another width, or of another type, is one sentence."""
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(1, 2, 4\).*expected \(G, N, D\)"):
        in_one(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), 0.1, torch.ones(1, 2))
    with pytest.raises(ValueError, match="one dtype"):
        in_one(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).double(), 0.1, torch.ones(1, 2))


MEMORY = """
import resource, torch, torch.nn.functional as F
from mscl_hf.losses import pixel_contrast
torch.set_num_threads(1)
def step(n):
    a, b = (F.normalize(torch.randn(1, n, 32), dim=-1).requires_grad_() for _ in range(2))
    pixel_contrast(a, b, torch.randint(0, 11, (1, n)), **{{"scope": "within", **{options}}}).loss.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(step(256), step(8192))
"""


@pytest.mark.parametrize("options", [{}, {"scope": "batch"}, {"reduction": "in"}, {"denominator": "neg"}], ids=str)
def test_memory_of_many_pixels(options):
    """8,192 pixels against as many within 200 MB: a matrix of similarities would be 256 MB, and autograd would keep several of them."""
    code = MEMORY.format(options=options)
    done = subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert many - few < 200

"""The cross-entropy of resized logits: its values and gradients, its memory, and what it does at the limits."""

import contextlib

import harness
import pytest
import torch
import torch.nn.functional as F

from mscl_hf.models import cross_entropy_mscl
from mscl_hf.models.cross_entropy_mscl import mean_cross_entropy, summed_cross_entropy


def reference(logits, labels, weights):
    """Resize all logits, then torch's cross-entropy."""
    full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return (F.cross_entropy(full, labels.masked_fill(weights == 0, 0), reduction="none") * weights).sum()


def inputs(size=(5, 7), target=(19, 24), classes=6, batch=3, dtype=torch.float64):
    torch.manual_seed(0)
    labels, weights = torch.randint(classes, (batch, *target)), torch.rand(batch, *target, dtype=dtype)
    ignored = torch.rand(batch, *target) < 0.3
    logits = torch.randn(batch, classes, *size, dtype=dtype, requires_grad=True)
    return logits, labels.masked_fill(ignored, 255), weights.masked_fill(ignored, 0)


@pytest.mark.parametrize("columns", [7, 64])
@pytest.mark.parametrize("tile_bytes", [1, 2000, 9000, 1 << 22], ids=["one row", "some rows", "more rows", "everything"])
@pytest.mark.parametrize(
    "size, target", [((5, 7), (19, 24)), ((5, 7), (5, 24)), ((5, 7), (10, 7)), ((9, 8), (4, 3)), ((1, 1), (6, 5)), ((4, 4), (4, 4))]
)
def test_equals_cross_entropy_of_resized_logits(monkeypatch, size, target, tile_bytes, columns):
    """Value and gradient, for tiles of any size, sizes that grow or shrink, ignored pixels and weights."""
    monkeypatch.setitem(cross_entropy_mscl.BYTES_AT_ONCE, "cpu", tile_bytes)
    monkeypatch.setattr(cross_entropy_mscl, "COLUMNS", columns)
    logits, labels, weights = inputs(size, target)
    found, wanted = summed_cross_entropy(logits, labels, weights), reference(logits, labels, weights)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    (found_grad,), (wanted_grad,) = (torch.autograd.grad(3 * value, logits) for value in (found, wanted))
    torch.testing.assert_close(found_grad, wanted_grad, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(summed_cross_entropy(logits, labels, weights), wanted)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_threads_share_the_images(count):
    """With fewer or more threads than images, value and gradient are right and the same each time, and the number of threads stays."""
    logits, labels, weights = inputs(batch=5)
    with threads(count):
        values = [summed_cross_entropy(logits, labels, weights) for _ in range(3)]
        gradients = [torch.autograd.grad(value, logits)[0] for value in values]
        with torch.inference_mode():
            torch.testing.assert_close(summed_cross_entropy(logits, labels, weights), values[0])
        with pytest.raises(RuntimeError, match="out of bounds"):
            summed_cross_entropy(logits, labels.masked_fill(labels == 2, 6), weights)
        assert torch.get_num_threads() == count
    wanted = reference(logits, labels, weights)
    torch.testing.assert_close(values[0], wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], torch.autograd.grad(wanted, logits)[0], rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, values[0]) for value in values) and all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_gradient_is_that_of_the_value():
    logits, labels, weights = inputs((2, 3), (5, 4), classes=3, batch=2)
    assert torch.autograd.gradcheck(lambda x: summed_cross_entropy(x, labels, weights), logits)


def test_no_tensor_has_all_classes_at_full_size():
    """With 150 classes, no tensor of the loss or of its gradient has a twentieth of the numbers of the resized logits."""
    logits, labels, weights = inputs((17, 17), (257, 257), classes=150, batch=2, dtype=torch.float32)
    with threads(1), harness.TensorSizes() as mode:  # which does not see other threads
        summed_cross_entropy(logits, labels, weights).backward()
    assert len(mode.sizes) > 100 and max(mode.sizes) < 2 * 150 * 257 * 257 / 18


def test_limits():
    """Large logits stay finite, bfloat16 is computed in float32 in spite of autocast, and a label that is no class is an error."""
    logits, labels, weights = inputs(dtype=torch.float32)
    large = (logits.detach() * 1e4).requires_grad_()
    value = summed_cross_entropy(large, labels, weights)
    value.backward()
    torch.testing.assert_close(value, reference(large, labels, weights))
    assert large.grad.isfinite().all()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = summed_cross_entropy(half, labels, weights)
    assert found.dtype == torch.float32 and torch.equal(found, summed_cross_entropy(half.float(), labels, weights))
    with pytest.raises(RuntimeError, match="out of bounds"):
        summed_cross_entropy(logits, labels.masked_fill(labels == 2, 6), weights)


def test_no_images_are_zero_with_a_graph():
    logits, labels, weights = (x[:0] for x in inputs())
    value = summed_cross_entropy(logits.detach().requires_grad_(), labels, weights)
    value.backward()
    assert value == 0


def test_sizes_that_were_first_used_in_inference_mode_can_be_trained():
    """The matrices of a size are kept, and are no inference tensors."""
    cross_entropy_mscl._parts.cache_clear()
    logits, labels, weights = inputs((3, 5), (11, 13))
    with torch.inference_mode():
        summed_cross_entropy(logits, labels, weights)
    summed_cross_entropy(logits, labels, weights).backward()
    torch.testing.assert_close(logits.grad, torch.autograd.grad(reference(logits, labels, weights), logits)[0])


def test_nothing_labelled_is_zero_with_a_graph():
    logits, labels, _ = inputs()
    value = mean_cross_entropy(logits, torch.full_like(labels, 255))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


def test_compiled_loss_is_one_graph():
    """A compiler gets two operations that it can fuse instead of a loop; the value and the gradient are the same."""
    logits, labels, weights = inputs()
    compiled = torch.compile(summed_cross_entropy, fullgraph=True, backend="aot_eager")
    values = [function(logits, labels, weights) for function in (summed_cross_entropy, compiled)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values))

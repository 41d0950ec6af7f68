"""Queue and memory bank: which rows a write changes, and that writes can be undone."""

import random
from collections import deque

import harness
import pytest
import torch
import torch.nn.functional as F
from golden import fill, u

from mscl_hf.methods.memory import Memory, MemoryBank, Queue
from mscl_hf.training.progress import NonFinite
from mscl_hf.training.setup import Buffers


def test_queue_is_a_ring_of_the_newest_rows():
    """After each of two hundred writes of any size, the rows are the unit vectors of a deque of the same length, in its order."""
    draw = random.Random(0)
    for length in (1, 5, 7, 12):
        queue, reference = Queue(length, 3), deque(maxlen=length)
        for _ in range(200):
            keys = torch.randn(draw.randint(0, 2 * length + 1), 3)
            queue.write(keys)
            reference.extend(F.normalize(keys, dim=1))
            oldest = int(queue.pointer)
            rows = queue.read() if len(reference) < length else torch.cat([queue.rows[oldest:], queue.rows[:oldest]])
            torch.testing.assert_close(rows, torch.stack(list(reference)) if reference else torch.zeros(0, 3))


def test_memory_bank_moves_the_rows_of_the_batch_only():
    """The golden row of InstDisc; rows start within 1 / sqrt(d / 3) and have length 1 once written; no other row changes."""
    bank = MemoryBank(10, 4)
    assert bank.rows.abs().max() <= (3 / 4) ** 0.5 and bank.rows.std() > 0.3
    bank.rows.copy_(u(fill((10, 4), 0.71, 0.13)))
    before = bank.rows.clone()
    bank.write(torch.tensor([2]), u(fill((4,)))[None])
    wanted = torch.tensor([0.184059016, 0.5107225363, 0.6528481135, 0.5282746543])
    torch.testing.assert_close(bank.rows[2], wanted, atol=1e-6, rtol=0)
    assert torch.equal(bank.rows[[0, 1, *range(3, 10)]], before[[0, 1, *range(3, 10)]])
    again, twice = MemoryBank(10, 4), torch.randn(3, 4)
    again.rows.copy_(bank.rows)
    bank.write(torch.tensor([0, 7, 0]), twice)  # of an image that comes twice the last one counts
    again.write(torch.tensor([7, 0]), twice[1:])
    assert torch.equal(bank.rows, again.rows)
    torch.testing.assert_close(bank.rows[[0, 2, 7]].norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("writes", [(), (3,), (3, 4), (5, 5, 5), (7,), (20, 2)])
def test_restore_undoes_all_writes_of_a_step(writes):
    """Rows that one step overwrites twice, and around the end of a queue, are those before the step; `keep` starts anew."""
    queue, bank = Queue(7, 3), MemoryBank(9, 3)
    queue.write(torch.randn(5, 3))
    buffers = Buffers(torch.nn.ModuleList([queue, bank]))
    for _ in range(2):
        buffers.keep()
        before = {name: value.clone() for part in (queue, bank) for name, value in part.state_dict(prefix=f"{id(part)}.").items()}
        for count in writes:
            queue.write(torch.randn(count, 3))
            bank.write(torch.randint(9, (count,)), torch.randn(count, 3))
        buffers.restore()
        after = {name: value for part in (queue, bank) for name, value in part.state_dict(prefix=f"{id(part)}.").items()}
        assert all(torch.equal(after[name], value) for name, value in before.items())
        queue.write(torch.randn(4, 3))  # a step that is not undone


def test_buffers_copy_no_rows():
    """Neither a queue nor a bank is copied as a whole: what is kept of a step are the overwritten rows."""
    queue = Queue(1000, 3)
    buffers = Buffers(queue)
    assert sorted(value.numel() for value in buffers.kept) == [1, 1]
    buffers.keep()
    queue.write(torch.randn(4, 3))
    assert [rows.shape for _, rows in queue._overwritten] == [(4, 3)]
    buffers.keep()
    assert queue._overwritten == []


def test_without_keep_nothing_is_recorded():
    """Outside the training loop, as in transformers' Trainer, writes do not accumulate copies."""
    queue = Queue(8, 3)
    queue.write(torch.randn(4, 3))
    assert queue._overwritten is None


@pytest.mark.parametrize("name", ["moco_v2", "densecl", "instdisc", "cmc"])
def test_a_non_finite_step_leaves_no_trace_in_a_memory(tmp_path, name):
    """With two batches per step, the second of which is not finite: all buffers are those of the step before."""
    method = harness.pretraining_method(name, "resnet18" if name == "cmc" else "test_resnet")
    forward, states = method.forward, []

    def poisoned(**batch):
        states.append({key: value.clone() for key, value in method.named_buffers()})
        terms = forward(**batch)
        return {**terms, "loss": terms["loss"] * float("nan")} if len(states) == 7 else terms  # one pass before training, and six

    method.forward = poisoned
    with pytest.raises(NonFinite, match="step 3"):
        harness.train(method, harness.method_data(name), tmp_path, gradient_accumulation_steps=2)
    before, during = states[5], states[6]
    assert all(torch.equal(before[key], value) for key, value in method.named_buffers())
    rows = [f"{key}.rows" for key, part in method.named_modules() if isinstance(part, Memory)]
    assert rows and not any(torch.equal(before[key], during[key]) for key in rows)  # the second batch saw the first one's keys

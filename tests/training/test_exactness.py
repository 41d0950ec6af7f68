"""Every method, stopped and resumed within an epoch or at its end, with workers and accumulation, equals an uninterrupted run."""

import random
from collections import deque

import harness
import pytest
import tiny
import torch
import torch.nn.functional as F
from same_run import differences

from mscl_hf.methods import METHODS
from mscl_hf.methods.memory import Queue

STEPS = 8
STOPS = (1, 3, 4, 5)  # with 8 scenes in batches of 4: within an epoch, and at its end
TRAINED = [name for name, method_cls in METHODS.items() if method_cls.trains]


def data_of(name: str):
    return harness.method_data(name, backbone_of(name))


def backbone_of(name: str) -> str:
    return "resnet18" if METHODS[name].two_towers else "test_resnet"


def method_of(name: str, seed: int = 0):
    return harness.pretraining_method(name, backbone_of(name), seed=seed)


def stopped_at(name: str, stop: int, out, **options) -> None:
    method = method_of(name)
    after_step = method.after_step
    harness.stop_after(method, stop, STEPS)
    send = method.after_step
    method.after_step = lambda done: (after_step(done), send(done))
    with pytest.raises(SystemExit):
        harness.train(method, data_of(name), out, **options)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", TRAINED)
def test_stopped_anywhere_and_resumed_is_the_straight_run(tmp_path, name, workers, accumulate):
    """Weights, optimizer, teachers, queues, banks and logged values are equal for each step of the stop."""
    options = {"max_steps": STEPS, "dataloader_num_workers": workers, "gradient_accumulation_steps": accumulate, "save_steps": 3}
    harness.train(method_of(name), data_of(name), tmp_path / "straight", **options)
    for stop in STOPS[:: 1 if accumulate == 1 else 2]:
        out = tmp_path / str(stop)
        stopped_at(name, stop, out, **options)
        harness.train(method_of(name, seed=9), data_of(name), out, **options)
        assert differences(out, tmp_path / "straight") == []


def test_queue_is_a_ring_of_the_newest_rows():
    """After two hundred writes of any size, the rows are those of a deque of the same length."""
    draw = random.Random(0)
    for length in (1, 5, 7, 12):
        queue, reference = Queue(length, 3), deque(maxlen=length)
        for _ in range(200):
            keys = torch.randn(draw.randint(1, 2 * length + 1), 3)
            queue.write(keys)
            reference.extend(F.normalize(keys, dim=1))
            oldest = int(queue.pointer)
            rows = queue.read() if len(reference) < length else torch.cat([queue.rows[oldest:], queue.rows[:oldest]])
            torch.testing.assert_close(rows, torch.stack(list(reference)))


@pytest.mark.parametrize("name", ["moco_v2", "byol", "densecl", "pixpro", "cp2"])
def test_check_of_the_teacher_fails_without_a_teacher(name):
    """`tiny.check_teacher` fails for a method whose keys come from the student."""
    made = harness.pretraining_method(name)
    batch = harness.method_data(name).batches(0, 1)
    batch = next(iter(batch))
    tiny.check_teacher(made, batch)
    made = harness.pretraining_method(name)
    kept = {part: torch.nn.Module.state_dict(module) for part, module in made.teacher.parts.items()}

    def forget(*_):  # undo what is written into the teacher
        for part, module in made.teacher.parts.items():
            module.load_state_dict(kept[part])

    kept = {part: {key: value.clone() for key, value in state.items()} for part, state in kept.items()}
    made.register_forward_pre_hook(forget)
    with pytest.raises(AssertionError):
        tiny.check_teacher(made, batch)

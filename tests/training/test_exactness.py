"""Every method, stopped and resumed within an epoch or at its end, with workers and accumulation, equals an uninterrupted run."""

import harness
import pytest
from same_run import differences

from mscl_hf.methods import METHODS

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

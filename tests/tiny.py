"""A tiny network and a fixed batch of synthetic scenes, for the tests of single methods."""

import numpy as np
import torch

from mscl_hf.config import ViewConfig
from mscl_hf.data import load_data
from mscl_hf.data.loader import stack
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForPreTraining
from mscl_hf.transforms.views import make_view

SIZE = 64  # px: feature maps of 4 x 4 positions


def network(seed: int = 0, **options) -> MsclForPreTraining:
    torch.manual_seed(seed)
    return MsclForPreTraining(build_config("test_resnet", image_size=SIZE, decoder_channels=16, heads=[], **options))


def batch_for(method, count: int = 4, seed: int = 0) -> dict:
    """Return the views of a method, of the first `count` scenes."""
    data, view = load_data("synthetic", "train"), make_view(method.views, method.preset, SIZE, SIZE, ViewConfig())
    samples = [data.read(i) for i in range(count + view.others)]
    views = [view(samples[i], np.random.default_rng([seed, i]), samples[i + 1 : i + 1 + view.others]) for i in range(count)]
    return view.on_device(stack([{**views[i], "labelled": False, "name": str(i), "bad": []} for i in range(count)]))


def losses_of_training(method, batch: dict, steps: int, autocast: bool = False, weight_decay: float = 0.0) -> list[float]:
    """Return the losses of steps on one batch; the EMA teacher is updated."""
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9, weight_decay=weight_decay)
    losses = []
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = method(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
        losses.append(float(loss.detach()))
    return losses


def hold_still(*queues, rows: int = 32) -> None:
    """Fill queues with random keys that no step replaces, so that negatives are the same in each step."""
    for number, queue in enumerate(queues):
        generator = torch.Generator().manual_seed(number)
        queue.write(torch.randn(rows, queue.rows.shape[1], generator=generator))
        queue.write = lambda keys: None


def check_teacher(method, batch: dict) -> None:
    """Assert that the loss depends on each part of the teacher, and that none gets a gradient."""
    method(**batch)["loss"].backward()
    teacher = list(method.teacher.parameters())
    assert teacher and all(p.grad is None and not p.requires_grad for p in teacher)
    state = {name: value.clone() for name, value in method.state_dict().items()}

    def loss() -> float:
        return float(method(**batch)["loss"].detach())

    before = loss()
    for part in method.teacher.parts:
        method.load_state_dict(state)
        assert loss() == before
        method.load_state_dict(state)
        with torch.no_grad():
            for parameter in method.teacher.parts[part].parameters():
                parameter.add_(torch.randn(parameter.shape) * (0.1 + parameter.abs().mean()))
        assert abs(loss() - before) > 1e-4, part


def check_follows(method, momentum: float, done: float) -> None:
    """Assert that after a step each parameter of the teacher is momentum * teacher + (1 - momentum) * student."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in torch.nn.ModuleDict(method.student()).parameters():
            parameter.add_(torch.randn(parameter.shape))
    student = {name: value.clone() for name, value in torch.nn.ModuleDict(method.student()).named_parameters()}
    before = {name: value.clone() for name, value in method.teacher.parts.named_parameters()}
    method.after_step(done)
    after = dict(method.teacher.parts.named_parameters())
    assert after.keys() == student.keys() == before.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * student[name])

"""Evaluate a small model on generated data, on as many processes as are started; the tests import the model and the data too.

    torchrun --standalone --nproc_per_node 2 tests/distributed/evaluate_worker.py FOLDER
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

CLASSES = ("sky", "road", "car", "tree")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class TinyData:
    """Images of various sizes whose red channel tells the class roughly; image `broken` cannot be read."""

    name, split, classes, num_classes = "tiny", "test", CLASSES, len(CLASSES)

    def __init__(self, size, seed=0, broken=None):
        self.size, self.seed, self.broken = size, seed, broken

    def __len__(self):
        return self.size

    def read(self, index):
        if index == self.broken:
            raise ValueError(f"image{index}.png is truncated; replace it.")
        rng = np.random.default_rng([self.seed, index])
        blocks = rng.integers(0, len(CLASSES), (rng.integers(2, 6), rng.integers(2, 6)))
        mask = np.kron(blocks, np.ones((7, 9))).astype(np.uint8)
        image = rng.integers(0, 256, (*mask.shape, 3)).astype(np.uint8)
        image[..., 0] = mask * 60 + rng.integers(0, 60, mask.shape)
        mask[rng.random(mask.shape) < 0.1] = 255
        image.flags.writeable = False  # as np.asarray(PIL image) is
        return SimpleNamespace(image=image, mask=mask, name=f"image{index}")


class TinyModel(nn.Module):
    """transformers' contract for segmentation, with one convolution: (B, 3, H, W) -> .logits (B, K, h, w)."""

    def __init__(self, kernel=3, stride=2, classes=CLASSES, seed=0):
        super().__init__()
        statistics = {"image_mean": MEAN, "image_std": STD}
        self.config = SimpleNamespace(num_labels=len(classes), id2label=dict(enumerate(classes)), **statistics)
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, len(classes), kernel, stride, kernel // 2)
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append((tuple(pixel_values.shape), self.training))
        return SimpleNamespace(logits=self.conv(pixel_values))


def main(folder):
    from accelerate import Accelerator

    from mscl_hf.evaluation.evaluate import evaluate_model

    accelerator = Accelerator(cpu=True)
    answers = {"world": accelerator.num_processes}
    for size in (5, 7, 9, 1):
        result = evaluate_model(TinyModel(), TinyData(size), accelerator)
        answers[str(size)] = {key: value for key, value in result.items() if key != "seconds"}
    try:
        evaluate_model(TinyModel(), TinyData(7, broken=3), accelerator)
    except (ValueError, OSError) as error:
        answers["broken"] = str(error)
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(answers))
    accelerator.end_training()
    # Seen once in some fifty runs: gloo's threads abort the interpreter while it shuts down, all work done.
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

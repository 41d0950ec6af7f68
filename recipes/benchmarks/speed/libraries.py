"""Images per second of other libraries and of this one, in turns: pre-training and fine-tuning."""

import itertools
import sys
from pathlib import Path

import torch

from mscl_hf.cli import as_words

from .finetune_peers import BACKBONES
from .options import NO_CACHE, PRECISIONS, SIMCLR, SpeedOptions, step_flags
from .processes import measure, median_seconds, run_json
from .step import DEVICE


def measure_peers(options: SpeedOptions) -> list[dict]:
    rows = []
    settings = {"image-size": options.image_size, "batch-size": options.batch_size, "backbone": options.backbone,
                "workers": options.workers, "steps": options.steps, "warmup": 10, "threads": torch.get_num_threads(),
                "images": Path(options.data_dir) / "train"}  # fmt: skip
    for _, precision in itertools.product(range(options.rounds), PRECISIONS):
        for name, more in (("mscl_hf", ()), ("mscl_hf, no cache", NO_CACHE)):
            flags = step_flags(options, *SIMCLR, "--mixed-precision", PRECISIONS[precision], *more)
            ours = measure("step", name=name, flags=flags, steps=options.steps, bare=False)
            rows.append({"peer": name, "precision": precision} | {key: ours[key] for key in ("images_per_second", "milliseconds")})
        for peer in ("lightly_train", "lightly", "stable_pretraining"):
            python, script = Path(options.peers) / peer / "bin" / "python", Path(__file__).with_name("peers.py")
            row = run_json(python, script, "run", peer, *as_words(settings | {"precision": precision}), PYTHONPATH="")
            rows.append({"peer": peer, "precision": precision, **{key: row[key] for key in ("version", "images_per_second")}})
            print(rows[-1], flush=True)
        rows.append(measure("bare", precision=precision, backbone=options.backbone, side=options.image_size, views=2 * options.batch_size))
    return rows


def bare(precision: str, backbone: str, side: int, views: int) -> dict:
    """Forward and backward of the timm model on tensors in memory: an upper bound for any step with two views of an image."""
    import timm

    model = timm.create_model(backbone, num_classes=0).to(DEVICE, memory_format=torch.channels_last).train()
    images = torch.randn(views, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def function() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            out = model(images)
        out.backward(torch.ones_like(out))
        model.zero_grad()

    median_seconds(function, 3)
    return {"peer": "bare network", "images_per_second": round(views / 2 / median_seconds(function, 20), 2)}


def measure_finetune_peers(options: SpeedOptions) -> list[dict]:
    """Each library and this one on the same network, in turns; the sizes are those of finetune_peers.py."""
    script, rows = Path(__file__).with_name("finetune_peers.py"), []
    settings = {"data-dir": options.data_dir, "workers": options.workers, "steps": options.steps}
    for _, precision, (backbone, library) in itertools.product(range(options.rounds), PRECISIONS, BACKBONES.items()):
        words = ["--backbone", backbone, "--precision", precision, *as_words(settings)]
        theirs = run_json(Path(options.peers) / library / "bin" / "python", script, library, *words, PYTHONPATH="")
        for row in (run_json(sys.executable, script, "mscl_hf", *words), theirs):
            rows.append({"backbone": backbone, "precision": precision} | row)
            print(rows[-1], flush=True)
    return rows

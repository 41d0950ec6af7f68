"""Images per second of other libraries and of this one, in turns: pre-training and fine-tuning."""

import itertools
import sys
from pathlib import Path

import torch

from mscl_hf.cli import as_words
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation

from .finetune_peers import BACKBONES, BATCH, CLASSES, DECODERS, RATES, SIZE
from .options import LIBRARIES, NO_CACHE, PRECISIONS, SIMCLR, SpeedOptions, step_flags
from .processes import measure, median_seconds, run_json, run_worker
from .step import DEVICE
from .waits import rotated


def measure_peers(options: SpeedOptions) -> list[dict]:
    """SimCLR in each library, in this one with and without its cache of decoded images, and the bare network, in turns."""
    rows = []
    settings = {"image-size": options.image_size, "batch-size": options.batch_size, "backbone": options.backbone,
                "workers": options.workers, "steps": options.steps, "warmup": 10, "threads": torch.get_num_threads(),
                "images": Path(options.data_dir) / "train"}  # fmt: skip
    for _, precision in itertools.product(range(options.rounds), PRECISIONS):
        for name, more in (("mscl_hf", ()), ("mscl_hf, no cache", NO_CACHE)):
            flags = step_flags(options, *SIMCLR, "--mixed-precision", PRECISIONS[precision], *more)
            ours = measure("step", name=name, flags=flags, steps=options.steps, bare=False)
            rows.append({"peer": name, "precision": precision} | {key: ours[key] for key in ("images_per_second", "milliseconds")})
        for peer in LIBRARIES["peers"]:
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
    """Each library, this one with and without its cache of decoded images, and the bare network; another one is first in each round."""
    rows = []
    for number, precision, backbone in itertools.product(range(options.rounds), PRECISIONS, BACKBONES):
        library, results = BACKBONES[backbone], {}
        for name in rotated(["mscl_hf", "mscl_hf, no cache", library, "bare network"], number):
            if name == "bare network":
                results[name] = run_worker("bare_finetuning", backbone=backbone, precision=precision)
            else:
                results[name] = finetuning_in(name, options, backbone, precision)
            rows.append({"backbone": backbone, "precision": precision} | results[name] | {"library": name})
            print(rows[-1], flush=True)
        ours, theirs = (results[name]["parameters"] for name in ("mscl_hf", library))
        if not 0.95 < theirs / ours < 1.05:
            raise ValueError(f"{backbone} has {theirs} weights in {library}; expected about {ours}.")
    return rows


def finetuning_in(name: str, options: SpeedOptions, backbone: str, precision: str) -> dict:
    """Fine-tuning in a library, or in mscl_hf without its cache."""
    library, *no_cache = name.split(", ")
    ours = library == "mscl_hf"
    python = sys.executable if ours else Path(options.peers) / library / "bin" / "python"
    settings = {"backbone": backbone, "precision": precision, "data-dir": options.data_dir}
    settings |= {"workers": options.workers, "steps": options.steps}
    words = [*as_words(settings), *(["--no-cache"] if no_cache else [])]
    return run_json(python, Path(__file__).with_name("finetune_peers.py"), library, *words, **({} if ours else {"PYTHONPATH": ""}))


def bare_finetuning(backbone: str, precision: str) -> dict:
    """Forward and backward of backbone, decoder and classifier on tensors in memory."""
    rates = {"decoder_rates": RATES} if backbone == "resnet18" else {}
    config = build_config(backbone, image_size=SIZE, base_size=0, decoder_type=DECODERS[backbone],
                          num_labels=len(CLASSES), use_auxiliary_head=False, **rates)  # fmt: skip
    network = MsclForSemanticSegmentation(config).to(DEVICE, memory_format=torch.channels_last).train()
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def function() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            out = network(pixel_values=images).logits
        out.backward(torch.ones_like(out))
        network.zero_grad()

    median_seconds(function, 3)
    parameters = sum(weight.numel() for weight in network.parameters())
    return {"version": "", "parameters": parameters, "images_per_second": round(BATCH / median_seconds(function, 10), 2)}

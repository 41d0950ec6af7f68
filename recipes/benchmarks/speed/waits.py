"""What a user waits for, each beside what it is compared with, in turns: help, start, evaluation, fine-tuning step, large images."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from mscl_hf import data, evaluation, models
from mscl_hf.config import InferenceConfig
from mscl_hf.data.synthetic import draw_scene
from mscl_hf.data.tiles import window_starts
from mscl_hf.methods import SegmentationTraining
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.models.normalization import image_statistics, normalize
from mscl_hf.training.setup import keep_freed_memory

from .step import DEVICE, peak_mb, wait

MANY, DIFFERENT = 100_000, 200  # files, and different images among them
EVALUATED = 60  # images of a round
WIDTH, HEIGHTS = 12_000, (3_000, 8_000)  # px of large images, both predicted in bands
FEW_STEPS = ("--dataset", "folder", "--backbone", "test_resnet", "--decoder-channels", "16", "--image-size", "32", "--base-size", "64",
             "--batch-size", "4", "--max-steps", "2", "--health-steps", "0", "--method", "simclr")  # fmt: skip


def seconds(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    wait()
    started = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - started


def row(what: str, ours: float, beside: str, theirs: float, **more: float) -> dict:
    return {"wait": what, "ours": round(ours, 4), "beside": beside, "theirs": round(theirs, 4)} | more


def run(*command: object) -> float:
    """Seconds of a command, whose output is dropped."""
    return seconds(lambda: subprocess.run([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True))


def command_help(command: str) -> list[dict]:
    """The help of a command beside the import of torch."""
    return [row(f"`{command} --help`", run(Path(sys.executable).with_name(command), "--help"), "`import torch`",
                run(sys.executable, "-c", "import torch"))]  # fmt: skip


def start() -> list[dict]:
    """A run of two steps on many images without masks, the second time, beside the same run on few images; and the listing alone."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, count in (("many", MANY), ("few", DIFFERENT)):
            (folder / name / "images").mkdir(parents=True)
            for number in range(count):
                first, file = folder / "many" / "images" / f"{number % DIFFERENT:06d}.jpg", folder / name / "images" / f"{number:06d}.jpg"
                if not first.exists():
                    Image.fromarray(draw_scene(0, "train", number, 120, 160)[0]).save(first)
                if file != first:
                    os.link(first, file)
        took = {}
        for name in ("many", "few", "many", "few"):
            command = [sys.executable, "-m", "recipes.pretrain", *FEW_STEPS, "--data-dir", folder / name]
            with tempfile.TemporaryDirectory() as out:
                took[name] = run(*command, "--output-dir", Path(out) / "run")
        listed = seconds(lambda: [entry.name for entry in os.scandir(folder / "many" / "images")])
    return [row(f"second run on {MANY:,} images, 2 steps", took["many"], f"on {DIFFERENT} images", took["few"], scandir=round(listed, 3))]


def network(num_labels: int, size: int = 513) -> MsclForSemanticSegmentation:
    torch.manual_seed(0)
    return MsclForSemanticSegmentation(build_config("resnet18", image_size=size, base_size=0, num_labels=num_labels)).to(DEVICE)


def evaluate(data_dir: str, first: int = 0) -> list[dict]:
    """Evaluation of CamVid's test images, 360 x 480 px, beside loops over the same network. first: index of the loop that runs first."""
    keep_freed_memory()  # as `mscl-evaluate` does; here for all loops
    images = data.load_data("camvid", "test", Path(data_dir)).select(range(EVALUATED))
    model = network(images.num_classes).eval()
    model.config.id2label = dict(enumerate(images.classes))
    with tempfile.TemporaryDirectory() as folder:  # as a user opens it
        model.save_pretrained(folder)
        opened = models.open_fine_tuned(folder).to(DEVICE)
    accelerator, statistics = Accelerator(cpu=DEVICE == "cpu"), image_statistics(model.config)

    def ready(index: int) -> torch.Tensor:
        return normalize(torch.from_numpy(images.read(index).image.copy()).permute(2, 0, 1)[None], *statistics)

    tensors = [ready(index).to(DEVICE) for index in range(EVALUATED)]

    @torch.inference_mode()
    def plain() -> None:
        for pixels in tensors:
            model(pixel_values=pixels)

    def ours() -> None:
        evaluation.evaluate_model(opened, images, accelerator, InferenceConfig(base_size=0))

    def channels_last() -> None:
        model.to(memory_format=torch.channels_last)
        plain()
        model.to(memory_format=torch.contiguous_format)

    loops = {
        "network on ready tensors": plain,
        "the same, channels last": channels_last,
        "DataLoader and torchmetrics": with_torchmetrics(model, images, ready),
        "pipeline of transformers, MeanIoU of mscl_hf": with_pipeline(model, images),
    }
    plain()  # a warm-up
    took = {name: seconds(loops.get(name, ours)) for name in rotated([*loops, "ours"], first)}
    return [row(f"evaluation of {EVALUATED} images of CamVid", took["ours"], name, took[name]) for name in loops]


def rotated(names: list[str], first: int) -> list[str]:
    first %= len(names)
    return names[first:] + names[:first]


def with_torchmetrics(model, images, ready: Callable[[int], torch.Tensor]) -> Callable[[], None]:
    """The loop of the documentations of segmentation_models_pytorch and torchmetrics: batches of a DataLoader, argmax, Jaccard index."""
    from torchmetrics.classification import MulticlassJaccardIndex

    class Samples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple:
            return ready(index)[0], torch.from_numpy(images.read(index).mask.astype(np.int64))

    @torch.inference_mode()
    def loop() -> None:
        metric = MulticlassJaccardIndex(images.num_classes, ignore_index=255, average=None).to(DEVICE)
        for pixels, masks in torch.utils.data.DataLoader(Samples(), batch_size=8, num_workers=2):
            logits = model(pixel_values=pixels.to(DEVICE)).logits
            logits = torch.nn.functional.interpolate(logits, size=masks.shape[-2:], mode="bilinear")
            metric.update(logits.argmax(1), masks.to(DEVICE))
        metric.compute()

    return loop


def with_pipeline(model, images) -> Callable[[], None]:
    """transformers' pipeline with batches, and the metric of this package."""
    from transformers import pipeline

    from mscl_hf.evaluation.metrics import MeanIoU
    from mscl_hf.sharing.model_folder import image_processor

    segment = pipeline("image-segmentation", model=model, image_processor=image_processor(model.config, (360, 480)), device=DEVICE)
    ids = {name: index for index, name in enumerate(images.classes)}

    def loop() -> None:
        samples, metric = [images.read(index) for index in range(len(images))], MeanIoU()
        for sample, parts in zip(samples, segment([Image.fromarray(sample.image) for sample in samples], batch_size=8)):
            predicted = np.zeros(sample.mask.shape, np.uint8)
            for part in parts:
                predicted[np.asarray(part["mask"]) > 0] = ids[part["label"]]
            metric.add_batch(predictions=[predicted], references=[sample.mask])
        metric.compute(num_labels=images.num_classes, ignore_index=255)

    return loop


def finetune(num_labels: int, route: str, batch_size: int = 4, steps: int = 5, size: int = 513) -> dict:
    """Median seconds and peak MB of forward and backward of fine-tuning, or of the network with its heads alone, on tensors in memory."""
    keep_freed_memory()
    method = SegmentationTraining(network(num_labels, size)).train()
    method.to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, device=DEVICE)
    masks = torch.randint(0, num_labels, (batch_size, size, size), dtype=torch.uint8, device=DEVICE)

    def bare() -> None:
        outputs = method.network.both_logits(method.normalize(images))
        torch.autograd.backward([*outputs], [torch.ones_like(output) for output in outputs])

    def whole() -> None:
        method(images, masks)["loss"].backward()

    function = bare if route == "bare" else whole
    took = [seconds(lambda: (function(), method.zero_grad())) for _ in range(steps + 1)]
    return {"seconds": float(np.median(took[1:])), "peak_mb": round(peak_mb())}


def large_image(height: int, first: int = 0) -> list[dict]:
    """Prediction of a large image by windows, beside the network on windows that are ready. first: index of the loop that runs first."""
    keep_freed_memory()  # as `mscl-predict` does
    model, options = network(11).eval().to(memory_format=torch.channels_last), InferenceConfig(base_size=0, mode="slide")
    image = np.random.default_rng(0).integers(0, 256, (height, WIDTH, 3), dtype=np.uint8)
    predictor = evaluation.Predictor(evaluation.finite(model), model.config, torch.device(DEVICE), options)
    counts = [len(window_starts(side, options.window, options.stride)) for side in image.shape[:2]]
    window = torch.randn(1, 3, options.window, options.window, device=DEVICE).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def bare(windows: int) -> None:
        for _ in range(windows):
            model(pixel_values=window)

    loops = {"bare": lambda: bare(counts[0] * counts[1]), "ours": lambda: predictor.ids([image])}
    bare(4)  # a warm-up
    took = {name: seconds(loops[name]) for name in rotated([*loops], first)}
    name = f"prediction of {WIDTH:,} x {height:,} px by windows"
    return [row(name, took["ours"], "network on ready windows", took["bare"], peak_mb=round(peak_mb()))]

"""Images per second of fine-tuning on masks of CamVid in this package and in other libraries, with the environments of peers.py.

python recipes/benchmarks/speed/peers.py setup --envs runs/peers --only lightly_train smp
python recipes/benchmarks/speed/finetune_peers.py mscl_hf --backbone resnet18 --data-dir CamVid
runs/peers/smp/bin/python recipes/benchmarks/speed/finetune_peers.py smp --backbone resnet18 --data-dir CamVid

The same in all libraries: a network with random weights and without an auxiliary head, all of whose layers are trained, crop, batch,
precision, cross-entropy. ResNet-18 has DeepLabV3 at stride 16 with rates 3, 5 and 8; ViT-S/14 has a linear head, in mscl_hf one of two
layers. Loader and augmentations are those in the documentation of each library, as is the optimizer, Adam or AdamW. A step lasts from the
end of one optimizer step to the end of the next. The last line of the standard output is a JSON object.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist")
IGNORED = 255
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRECISIONS = {"bf16": "bf16-mixed", "fp32": "32-true"}  # as Lightning calls them
BACKBONES = {"resnet18": "smp", "vit_small_patch14_dinov2": "lightly_train"}  # and the library that each is compared with
RATES = (3, 5, 8)  # of the atrous convolutions of DeepLabV3
DECODERS = {"resnet18": "deeplabv3", "vit_small_patch14_dinov2": "linear"}
SIZE, BATCH = 224, 8  # side of the crops in px, and images of a batch
PACKAGES = {"mscl_hf": "mscl_hf", "lightly_train": "lightly-train", "smp": "segmentation-models-pytorch"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=PACKAGES)
    parser.add_argument("--backbone", choices=BACKBONES, required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--image-size", type=int, default=SIZE, help="side of the crops, in pixels")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--no-cache", action="store_true", help="mscl_hf: decode each image in each epoch, as the other libraries do")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--steps", type=int, default=30, help="steps measured")
    parser.add_argument("--warmup", type=int, default=10, help="steps before those measured")
    options = parser.parse_args()
    if options.library not in (libraries := ("mscl_hf", BACKBONES[options.backbone])):
        parser.error(f"{options.backbone} is not measured in {options.library}; expected {' or '.join(libraries)}")
    if min(options.warmup, options.steps) < 1:
        parser.error("--warmup and --steps must be 1 or more")
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        result = measure(options, Path(scratch))
    print(json.dumps(result))


def measure(options: argparse.Namespace, scratch: Path) -> dict:
    offline = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    os.environ |= offline | {"LIGHTLY_TRAIN_CACHE_DIR": str(scratch), "MSCL_HF_CACHE": str(scratch / "cache")}
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends, parameters = [], []  # when each step ended, in seconds; the number of trained weights

    def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not parameters:
            parameters.append(sum(weight.numel() for group in optimizer.param_groups for weight in group["params"]))
        ends.append(time.perf_counter())

    register_optimizer_step_post_hook(after_step)
    train = {function.__name__: function for function in (mscl_hf, lightly_train, smp)}[options.library]
    # More steps than those measured, or the loader's workers would be idle during the last of them.
    train(options, scratch, options.warmup + options.steps + 2 * options.workers)
    seconds = [after - before for before, after in itertools.pairwise(ends)][options.warmup - 1 :][: options.steps]
    return {
        "library": options.library,
        "version": importlib.metadata.version(PACKAGES[options.library]),
        "parameters": parameters[0],
        "images_per_second": round(options.batch_size / statistics.median(seconds), 2),
        **{name: getattr(options, name) for name in ("image_size", "batch_size", "workers")},
    }


def mscl_hf(options: argparse.Namespace, scratch: Path, steps: int) -> None:
    """`mscl-finetune` on a new network."""
    from mscl_hf.recipes import finetune, pretrain

    shared = ["--dataset", "camvid", "--data-dir", options.data_dir, "--image-size", options.image_size, "--base-size", 360,
              "--batch-size", options.batch_size, "--dataloader-num-workers", options.workers, "--val-split", "none",
              "--mixed-precision", {"bf16": "bf16", "fp32": "no"}[options.precision],
              *(["--image-cache-gb", 0] if options.no_cache else [])]  # fmt: skip
    network = ["--method", "none", "--backbone", options.backbone, "--decoder", DECODERS[options.backbone]]
    network += ["--decoder-rates", *RATES] if options.backbone == "resnet18" else []
    training = ["--auxiliary-loss-weight", 0, "--optim", "adamw", "--max-steps", steps, "--probe-batches", 0]
    call(pretrain.main, "pretrain", *network, *shared, "--output-dir", scratch / "start")
    call(finetune.main, "finetune", *training, *shared, "--model", scratch / "start", "--output-dir", scratch / "tuned")


def call(main, *words: object) -> None:
    """Call the main function of a command with these words."""
    sys.argv = [str(word) for word in words]
    main()


def lightly_train(options: argparse.Namespace, scratch: Path, steps: int) -> None:
    """https://docs.lightly.ai/train/stable/semantic_segmentation.html, with a linear head: mscl_hf does not have EoMT, its other head"""
    import lightly_train as library
    import torch

    for kind in ("images", "masks"):  # one image to validate on, which the library demands
        (scratch / kind).mkdir()
    first = min((options.data_dir / "val").iterdir())
    (scratch / "images" / first.name).symlink_to(first.resolve())
    (scratch / "masks" / f"{first.stem}.png").symlink_to((options.data_dir / "valannot" / f"{first.stem}.png").resolve())
    folders = {
        "train": {"images": str(options.data_dir / "train"), "masks": str(options.data_dir / "trainannot")},
        "val": {"images": str(scratch / "images"), "masks": str(scratch / "masks")},
    }
    library.train_semantic_segmentation(
        out=scratch / "out",
        model="dinov2/vits14-noreg-notpretrained-linear",
        data={**folders, "classes": dict(enumerate(CLASSES)) | {IGNORED: "unlabelled"}, "ignore_classes": [IGNORED]},
        steps=steps,
        batch_size=options.batch_size,
        gradient_accumulation_steps=1,
        num_workers=options.workers,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        precision=PRECISIONS[options.precision],
        model_args={"backbone_freeze": False},
        transform_args={"image_size": (options.image_size, options.image_size)},
        logger_args={"val_every_num_steps": steps, "tensorboard": None},
        save_checkpoint_args={"save_every_num_steps": steps},
    )


def smp(options: argparse.Namespace, scratch: Path, steps: int) -> None:
    """examples/camvid_segmentation_multiclass.ipynb of the project, without its metrics, and with cross-entropy instead of Dice"""
    import lightning
    import torch

    loader = torch.utils.data.DataLoader(smp_images(options), options.batch_size, shuffle=True, drop_last=True,
                                         num_workers=options.workers, persistent_workers=options.workers > 0)  # fmt: skip
    lightning.Trainer(
        max_steps=steps,
        devices=1,
        logger=False,
        precision=PRECISIONS[options.precision],
        default_root_dir=scratch,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(smp_module(steps), loader)


def smp_images(options: argparse.Namespace):
    """Return the training images and masks of CamVid with the augmentations of the notebook."""
    import albumentations as A
    import cv2
    import torch

    side = options.image_size
    augment = A.Compose([
        A.HorizontalFlip(p=0.5),
        A.ShiftScaleRotate(scale_limit=0.5, rotate_limit=0, shift_limit=0.1, p=1, border_mode=0),
        A.PadIfNeeded(min_height=side, min_width=side),
        A.RandomCrop(height=side, width=side),
        A.GaussNoise(p=0.2),
        A.Perspective(p=0.5),
        A.OneOf([A.CLAHE(p=1), A.RandomBrightnessContrast(p=1), A.RandomGamma(p=1)], p=0.9),
        A.OneOf([A.Sharpen(p=1), A.Blur(blur_limit=3, p=1), A.MotionBlur(blur_limit=3, p=1)], p=0.9),
        A.OneOf([A.RandomBrightnessContrast(p=1), A.HueSaturationValue(p=1)], p=0.9),
    ])  # fmt: skip

    class CamVid(torch.utils.data.Dataset):
        def __init__(self):
            self.files = sorted((options.data_dir / "train").iterdir())

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            file = self.files[index]
            image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
            mask = cv2.imread(str(options.data_dir / "trainannot" / f"{file.stem}.png"), cv2.IMREAD_GRAYSCALE)
            sample = augment(image=image, mask=mask)
            return sample["image"].transpose(2, 0, 1), sample["mask"]

    return CamVid()


def smp_module(steps: int):
    """Return DeepLabV3 with its training step and optimizer."""
    import lightning
    import segmentation_models_pytorch as library
    import torch

    class Segmentation(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = library.DeepLabV3("tu-resnet18", encoder_weights=None, encoder_output_stride=16, decoder_atrous_rates=RATES,
                                           decoder_aspp_dropout=0.1, classes=len(CLASSES))  # fmt: skip
            for name in ("conv", "bn", "relu"):  # a last convolution of 3 x 3, which mscl_hf does not have
                setattr(self.model.decoder, name, torch.nn.Identity())
            self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
            self.loss = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)

        def training_step(self, batch, batch_index):
            images, masks = batch
            logits = self.model((images / 255.0 - self.mean) / self.std).contiguous()
            return self.loss(logits, masks.long())

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=1e-5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Segmentation()


if __name__ == "__main__":
    main()

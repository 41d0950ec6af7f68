"""Images per second of a SimCLR pre-training step in other libraries, each in a virtual environment of its own.

python recipes/benchmarks/speed/peers.py setup --envs runs/peers
runs/peers/lightly/bin/python recipes/benchmarks/speed/peers.py run lightly --images CamVid/train --image-size 128 --batch-size 16

Each library trains as its documentation shows: its own loader, augmentations, loss and optimizer, two views an image, a timm backbone with
random weights; settings are its defaults, except those on the command line. A step lasts from the end of one optimizer step to the end
of the next, data loading included. The last line of the standard output is a JSON object: images per second by the median step, each step.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

PEERS = {
    "lightly_train": ("lightly-train==0.18.0", "pytorch-lightning==2.6.6", "albumentations==2.0.8"),
    "lightly": ("lightly==1.6.0", "pytorch-lightning==2.6.6"),
    "stable_pretraining": ("stable-pretraining==0.1.8", "lightning==2.6.6"),
    "smp": ("segmentation-models-pytorch==0.6.0", "lightning==2.6.6", "albumentations==2.0.8"),  # for finetune_peers.py
}
PRECISION = {"bf16": "bf16-mixed", "fp32": "32-true"}  # as Lightning calls them
QUIET = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}  # for Lightning's trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    roles = parser.add_subparsers(dest="role", required=True)
    role = roles.add_parser("setup", help="make the environments that are missing")
    role.add_argument("--envs", type=Path, required=True, help="folder of the environments")
    names = f"libraries, of {', '.join(PEERS)} (default: all)"
    role.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help=names)
    role = roles.add_parser("run", help="measure one library, with the Python of its environment")
    role.add_argument("name", choices=[name for name in PEERS if name != "smp"])
    role.add_argument("--images", type=Path, required=True, help="folder of JPEG or PNG images; its folders are not searched")
    role.add_argument("--backbone", default="resnet18", help="timm name")
    role.add_argument("--image-size", type=int, default=128, help="side of a view, in pixels")
    role.add_argument("--batch-size", type=int, default=16, help="images in a step, two views each")
    role.add_argument("--precision", choices=PRECISION, default="bf16")
    role.add_argument("--workers", type=int, default=2, help="loader processes")
    role.add_argument("--steps", type=int, default=50, help="steps measured")
    role.add_argument("--warmup", type=int, default=20, help="steps before those measured; more than the loader prefetches")
    role.add_argument("--threads", type=int, help="threads of the training process (default: as torch chooses)")
    options = parser.parse_args()
    if options.role == "setup":
        setup(options.envs, options.only)
    elif min(options.warmup, options.steps) < 1:
        parser.error("--warmup and --steps must be 1 or more")
    else:
        run(options)


def setup(envs: Path, names: list[str]) -> None:
    """Make an environment for each library, which also sees the packages of this one, so that all have the same torch and timm."""
    for name in names:
        env, packages = envs / name, sysconfig.get_path("purelib")
        shared = [f"{package}=={importlib.metadata.version(package)}" for package in ("torch", "torchvision", "timm")]
        requirements, finished = [*shared, *PEERS[name]], env / "requirements.txt"
        if finished.is_file() and finished.read_text().split() == requirements:
            continue
        subprocess.run([sys.executable, "-m", "venv", env], check=True)
        (next(env.glob("lib/python*/site-packages")) / "shared.pth").write_text(f"{packages}\n")
        subprocess.run([env / "bin" / "python", "-m", "pip", "install", *requirements], check=True)
        finished.write_text("\n".join(requirements) + "\n")


def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        offline = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "NO_ALBUMENTATIONS_UPDATE": "1"}
        threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
        os.environ |= offline | threads | {"LIGHTLY_TRAIN_CACHE_DIR": scratch, "SPT_CACHE_DIR": scratch}
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        # One epoch is the whole run. More batches than those measured are needed, or the workers would be idle during the last of them.
        measured = options.warmup + options.steps
        images = repeat(options.images, Path(scratch) / "images", (measured + 2 * options.workers) * options.batch_size)
        ends: list[float] = []  # when each step ended, in seconds
        train = {function.__name__: function for function in (lightly_train, lightly, stable_pretraining)}[options.name]
        train(options, images, Path(scratch), lambda *_: ends.append(time.perf_counter()))
    seconds = [after - before for before, after in itertools.pairwise(ends[options.warmup - 1 : measured])]
    result = {
        "peer": options.name,
        "version": importlib.metadata.version(options.name.replace("_", "-")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "images_per_second": round(options.batch_size / statistics.median(seconds), 2),
        "images_per_second_mean": round(options.batch_size / statistics.mean(seconds), 2),
        "steps": len(seconds),
        "seconds": [round(value, 4) for value in seconds],
    }
    print(json.dumps(result))


def repeat(images: Path, target: Path, count: int) -> Path:
    """Make a folder of `count` links to the images of another folder, which repeat if necessary."""
    files = sorted(path.resolve() for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"no JPEG or PNG image in {images}")
    target.mkdir()
    for index, file in enumerate(itertools.islice(itertools.cycle(files), count)):
        (target / f"{index:07d}{file.suffix.lower()}").symlink_to(file)
    return target


def lightly_train(options: argparse.Namespace, images: Path, scratch: Path, on_step) -> None:
    """https://docs.lightly.ai/train/stable/pretrain_distill/methods/simclr.html"""
    import lightly_train as library
    import torch
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import LambdaCallback

    fit = Trainer.fit

    def timed_fit(trainer, *args, **kwargs):  # the library makes its trainer itself and takes no callback objects
        trainer.callbacks.append(LambdaCallback(on_train_batch_end=on_step))
        return fit(trainer, *args, **kwargs)

    Trainer.fit = timed_fit
    library.pretrain(
        out=scratch / "out",
        data=images,
        model=f"timm/{options.backbone}",
        method="simclr",
        epochs=1,
        batch_size=options.batch_size,
        num_workers=options.workers,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",  # its "auto" leaves bf16 off on a CPU
        precision=PRECISION[options.precision],
        transform_args={"image_size": (options.image_size, options.image_size)},
        callbacks={"model_checkpoint": None},
        trainer_args={"enable_checkpointing": False},
    )


def lightly(options: argparse.Namespace, images: Path, scratch: Path, on_step) -> None:
    """https://docs.lightly.ai/self-supervised-learning/examples/simclr.html, the example for PyTorch Lightning"""
    import pytorch_lightning
    import timm
    import torch
    from lightly.data import LightlyDataset
    from lightly.data.multi_view_collate import MultiViewCollate
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from pytorch_lightning.callbacks import LambdaCallback

    class SimCLR(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model(options.backbone, num_classes=0)
            self.projection_head = SimCLRProjectionHead(self.backbone.num_features, 2048, 2048)
            self.criterion = NTXentLoss()

        def training_step(self, batch, batch_index):
            return self.criterion(*(self.projection_head(self.backbone(view)) for view in batch[0]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.06)

    dataset = LightlyDataset(str(images), transform=SimCLRTransform(input_size=options.image_size))
    trainer = pytorch_lightning.Trainer(
        max_epochs=1,
        devices=1,
        logger=False,
        precision=PRECISION[options.precision],
        default_root_dir=scratch,
        callbacks=[LambdaCallback(on_train_batch_end=on_step)],
        **QUIET,
    )
    trainer.fit(SimCLR(), loader(options, dataset, collate_fn=MultiViewCollate()))


def stable_pretraining(options: argparse.Namespace, images: Path, scratch: Path, on_step) -> None:
    """The SimCLR example of the project's README, with the augmentations and settings of its benchmarks/imagenet100/simclr-resnet50.py"""
    import lightning
    import stable_pretraining as library
    import torch
    from lightning.pytorch.callbacks import LambdaCallback
    from PIL import Image
    from stable_pretraining import forward
    from stable_pretraining.data import transforms

    class Images(torch.utils.data.Dataset):
        def __init__(self):
            self.files = sorted(images.iterdir())

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            return (Image.open(self.files[index]).convert("RGB"),)

    def view(blur: float, *more) -> transforms.Compose:
        return transforms.Compose(
            transforms.RGB(),
            transforms.RandomResizedCrop((options.image_size, options.image_size), scale=(0.08, 1.0)),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.PILGaussianBlur(p=blur),
            *more,
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ToImage(**library.data.static.ImageNet),
        )

    views = transforms.MultiViewTransform([view(1.0), view(0.1, transforms.RandomSolarize(threshold=0.5, p=0.2))])
    dataset = library.data.FromTorchDataset(Images(), names=["image"], transform=views)
    backbone = library.backbone.from_timm(options.backbone, num_classes=0, pretrained=False)
    optimizer = {"type": "LARS", "lr": 0.3 * options.batch_size / 256, "weight_decay": 1e-4, "clip_lr": True, "eta": 0.02}
    module = library.Module(
        backbone=backbone,
        projector=torch.nn.Sequential(
            torch.nn.Linear(backbone.num_features, 2048, bias=False),
            torch.nn.BatchNorm1d(2048),
            torch.nn.ReLU(inplace=True),
            torch.nn.Linear(2048, 128, bias=False),
            library.backbone.BatchNorm1dNoBias(128),
        ),
        forward=forward.simclr,
        simclr_loss=library.losses.NTXEntLoss(temperature=0.5),
        optim={"optimizer": optimizer | {"exclude_bias_n_norm": True}, "scheduler": {"type": "LinearWarmupCosineAnnealing"}},
    )
    trainer = lightning.Trainer(
        max_epochs=1,
        devices=1,
        num_sanity_val_steps=0,
        precision=PRECISION[options.precision],
        default_root_dir=scratch,
        callbacks=[LambdaCallback(on_train_batch_end=on_step)],
        **QUIET,
    )
    data = library.data.DataModule(train=loader(options, dataset, persistent_workers=options.workers > 0))
    library.Manager(trainer=trainer, module=module, data=data, seed=0)()


def loader(options: argparse.Namespace, dataset, **more):
    import torch

    return torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers, **more)


if __name__ == "__main__":
    main()

"""The options of the speed benchmark, and the flags of the steps that it measures."""

from dataclasses import dataclass
from pathlib import Path

from mscl_hf.cli import as_words
from mscl_hf.config.fields import Section, option

from .finetune_peers import BACKBONES

PARTS = ("loss", "step", "peers", "finetune_peers", "metric", "growth", "memory", "waits")
LIBRARIES = {"peers": ("lightly_train", "lightly", "stable_pretraining"), "finetune_peers": tuple(BACKBONES.values())}  # in --peers
WAITS = ("help", "start", "evaluation", "finetune", "large image")
PRECISIONS = {"bf16": "bf16", "fp32": "no"}  # names in the results, and values of --mixed-precision


@dataclass(frozen=True)
class SpeedOptions(Section):
    """What to measure, and on which images."""

    data_dir: str | None = option(None, "folder of the data set (default: none, for synthetic scenes and no other libraries)")
    dataset: str = option("camvid", "layout of the data set, as for pretrain.py; folder for images without masks")
    losses: str = option("g+l+p", "losses of the step; g+l where there are no masks")
    workers: int = option(0, "loader processes, also of the other libraries", at_least=0)
    parts: list[str] = option(list(PARTS[:-2]), f"parts to measure, of {', '.join(PARTS)}; the others keep their figures")
    waits: list[str] = option(list(WAITS), f"waits to measure in the part waits, of {', '.join(WAITS)}")
    peers: str | None = option(None, "folder of the environments that peers.py setup made")
    results: str = option("results/speed.json", "file of the figures; a page and a picture are written beside it")
    largest: int = option(262144, "most anchors and keys of the loss", at_least=1)
    rounds: int = option(3, "measurements of each figure, in turns", at_least=1)
    steps: int = option(30, "steps measured in a run, after ten steps of warm-up", at_least=1)
    image_size: int = option(128, "side of the crops in px, except in finetune_peers", at_least=1)
    batch_size: int = option(16, "images in a step, two views each, except in finetune_peers", at_least=1)
    backbone: str = option("resnet18", "name of a timm model, except in finetune_peers")

    def __post_init__(self):
        super().__post_init__()
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise ValueError(f"--parts is {unknown[0]}; expected some of {', '.join(PARTS)}.")
        if unknown := [wait for wait in self.waits if wait not in WAITS]:
            raise ValueError(f"--waits is {unknown[0]}; expected some of {', '.join(WAITS)}.")
        if "waits" in self.parts and "evaluation" in self.waits and not self.data_dir:
            raise ValueError("--waits has evaluation, which needs --data-dir of CamVid. Give it, or leave evaluation out.")
        for part in LIBRARIES:
            if part in self.parts and not (self.peers and self.data_dir):
                raise ValueError(f"--parts has {part}, which needs --peers DIR and --data-dir. Make DIR by peers.py setup.")
        if "finetune_peers" in self.parts and self.dataset != "camvid":
            raise ValueError(f"--dataset is {self.dataset}; expected camvid for --parts finetune_peers. Leave that part out.")


STEP = ("--mixed-precision", "bf16", "--val-split", "none")
SIMCLR = ("--losses", "g", "--negatives", "ntxent", "--global-temperature", "0.5", "--output-stride", "32", "--geometry", "crops",
          "--augment-both", "true", "--val-split", "none")  # fmt: skip
NO_CACHE = ("--image-cache-gb", "0")


def check_environments(options: SpeedOptions) -> None:
    """Raise ValueError where the environment of a library that is measured is missing."""
    for name in dict.fromkeys(name for part in options.parts for name in LIBRARIES.get(part, ())):
        if not (Path(options.peers) / name / "bin" / "python").exists():
            raise ValueError(f"--peers {options.peers} has no {name}; expected the environments of all libraries. Run peers.py setup.")


def step_flags(options: SpeedOptions, *more: str, **changes) -> list[str]:
    """The flags of pretrain.py. changes: sizes, by hyphenated names."""
    data = {"dataset": options.dataset, "data-dir": options.data_dir} if options.data_dir else {}
    sizes = {"image-size": options.image_size, "batch-size": options.batch_size, "backbone": options.backbone,
             "dataloader-num-workers": options.workers} | changes  # fmt: skip
    losses = {} if "--losses" in more else {"losses": options.losses}
    return [*more, *as_words(losses | data | sizes)]

"""The checks of a folder of images in one of several processes: saves their results, and how many images this process read.

    python tests/distributed/data_worker.py RANK WORLD FOLDER

FOLDER holds the data sets good/ and bad/; results are saved as FOLDER/rankR.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mscl_hf.config import DataConfig
from mscl_hf.data import BadSample, image_io, open_held_out, usable, with_image_range
from mscl_hf.data.splits import open_split


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    opened, open_image = [], image_io.Image.open
    image_io.Image.open = lambda file, *rest, **options: opened.append(1) or open_image(file, *rest, **options)
    logged = []
    options = with_image_range(DataConfig("folder", str(folder / "good"), max_bad_images=1), log=logged.append)
    data = usable(open_split(options, "train"), options, logged.append)
    held_out = open_held_out(DataConfig("folder", str(folder / "good"), num_classes=3), logged.append)
    errors = []
    for work in (
        lambda: usable(open_split(DataConfig("folder", str(folder / "bad"), num_classes=2), "train"), DataConfig()),
        lambda: open_split(DataConfig("folder", str(folder / "bad")), "train"),
    ):
        try:
            work()
        except ValueError as error:
            errors.append((isinstance(error, BadSample), str(error)))
    results = {
        "opened": len(opened), "logged": logged, "image_range": options.image_range, "classes": data.classes, "names": data.names,
        "pixels": data.labels.pixels.tolist(), "total": data.labels.total, "held_out": held_out, "errors": errors,
    }  # fmt: skip
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

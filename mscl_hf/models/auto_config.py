"""Importing this module registers the configuration with transformers' AutoConfig. `import mscl_hf` does so when that is imported."""

from transformers.models.auto.configuration_auto import AutoConfig

from .configuration_mscl import MsclConfig

AutoConfig.register("mscl", MsclConfig)

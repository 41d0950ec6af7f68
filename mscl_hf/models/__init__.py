"""Networks: configurations, backbones from timm, decoders, heads. The files NAME_mscl.py travel with a checkpoint."""

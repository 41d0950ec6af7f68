"""LoRA: trained products of two small matrices beside the frozen linear layers of a ViT (Hu et al., ICLR 2022, arXiv:2106.09685)."""

from torch import nn

from .modeling_mscl import MsclBackbone


def attach_lora(backbone: MsclBackbone, rank: int) -> int:
    """Freeze the backbone, add a trained product of this rank to each linear layer of its blocks, and return the number of layers.

    The products start at zero. Raises ValueError for a backbone without attention, and where `peft` is not installed.
    """
    model = backbone.timm_model
    if not any(name.endswith("attn") for name, _ in model.named_modules()):
        raise ValueError(f"--lora-rank is {rank}, and {backbone.config.backbone} has no attention layers. Leave it out.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"--lora-rank is {rank}, and peft is not installed. Run: pip install 'mscl_hf[lora]'") from error
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)
    return len(names)


def merge_lora(backbone: MsclBackbone) -> None:
    """Add the trained products to the weights of their layers, so that the backbone is timm's again."""
    from peft.tuners.lora import LoraLayer

    model = backbone.timm_model
    for name, layer in [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())

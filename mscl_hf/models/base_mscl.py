"""The base class of all models: initialization, saving, and loading of checkpoints that may be untrusted.

Self-contained (torch, transformers and sibling files *_mscl), so that a checkpoint can carry this file as remote code.
"""

import inspect

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.core_model_loading import rename_source_key
from transformers.utils import TransformersKwargs, logging
from transformers.utils.hub import resolve_revision

from .checks_mscl import base_of_adapter, check_adapter, check_new, check_types, check_weights, is_adapter, stored_tensors
from .configuration_mscl import MsclConfig

logger = logging.get_logger(__name__)
TRANSFORMERS_KEYWORDS = frozenset(TransformersKwargs.__annotations__)  # Trainer, pipelines and models may pass them to any model


class MsclPreTrainedModel(PreTrainedModel):
    """Base class of all mscl_hf models. Weights that are missing from a checkpoint raise ValueError."""

    config_class = MsclConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # timm's attention calls torch's scaled_dot_product_attention by itself
    accepts_loss_kwargs = False
    model_tags = ["timm", "mscl"]
    # Parts that may be missing from a checkpoint as a whole, because it is of another stage or was built with other options.
    _heads = ("classifier", "auxiliary_head", "global_head", "local_head", "pixel_head")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if getattr(module, "_is_timm", False):
            # timm has initialized its weights. Buffers outside the checkpoint are lost when the model is built on the meta device, as
            # from_pretrained does, and must be computed again.
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        elif isinstance(module, nn.Conv2d):
            if getattr(module, "_is_classifier", False):
                init.normal_(module.weight, std=0.01)
            else:
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def _initialize_weights(self, module: nn.Module, *args) -> None:
        super()._initialize_weights(module, *args)
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module._is_hf_initialized = False  # it has no memory yet, and init_weights may be called again when it has

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func=torch_checkpoint, every_n_layers: int = 1
    ) -> None:
        """Switch timm's gradient checkpointing, which chooses the recomputed blocks itself; use_reentrant changes no number."""
        offload = getattr(gradient_checkpointing_func, "func", gradient_checkpointing_func) is not torch_checkpoint
        for option, value, supported in (("every_n_layers", every_n_layers, 1), ("offload", offload, False)):
            if enable and value != supported:
                raise ValueError(f"{option} is {value!r}; expected {supported!r}. timm chooses which activations are recomputed.")
        for module in self.modules():
            if isinstance(module, MsclPreTrainedModel) and hasattr(module, "timm_model"):
                try:
                    module.timm_model.set_grad_checkpointing(enable)
                except (AssertionError, AttributeError) as error:
                    raise ValueError(f"timm's {module.config.backbone} has no gradient checkpointing. Leave it out.") from error
                module.gradient_checkpointing = enable

    def get_input_embeddings(self) -> nn.Module:
        """Return the convolution that reads the image, for libraries of quantization and adapters."""
        return next(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def _check_keywords(self, keywords: dict) -> None:
        """Raise TypeError for keywords of a forward pass that neither the model nor transformers has."""
        if unknown := [name for name in keywords if name not in TRANSFORMERS_KEYWORDS]:
            accepted = [name for name in inspect.signature(self.forward).parameters if name != "kwargs"]
            raise TypeError(f"{type(self).__name__}.forward has no argument {unknown[0]!r}; expected {', '.join(accepted)}.")

    def save_pretrained(self, *args, **kwargs) -> None:
        """As in transformers; what from_pretrained would reject raises ValueError before anything is written."""
        if not getattr(self, "_hf_peft_config_loaded", False):  # transformers saves the adapter alone
            self.config.check_reopens()
            for name, tensor in self.named_parameters():
                if type(tensor).__module__.partition(".")[0] != "torch":
                    raise ValueError(
                        f"the weight {name} is a {type(tensor).__module__}.{type(tensor).__name__}, and quantized models are neither saved "
                        "nor opened. Save the model before it is quantized."
                    )
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; weights are read from safetensors only, and weights that are missing raise ValueError.

        Only the heads of another stage may be new: a classifier on a pre-training checkpoint, with classes from `id2label` or
        `num_labels`; on a backbone that was saved alone also the decoder, which is logged. `ignore_mismatched_sizes=True` replaces a
        classifier of other classes.
        """
        adapter_name = kwargs.pop("adapter_name", None)
        name, adapter, adapter_kwargs = _resolve(pretrained_model_name_or_path, kwargs)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        backbone_alone = model.config.architectures == ["MsclBackbone"]  # its labels, if any, belong to a classifier that was not saved
        unnamed = not model.config.labels_given and (backbone_alone or model.config.id2label == PreTrainedConfig().id2label)
        if "classifier.weight" in info["missing_keys"] and unnamed and model.config.architectures not in (None, [cls.__name__]):
            raise ValueError(
                f"{name} is {'a backbone alone' if backbone_alone else 'pre-trained'} and has no classifier. Fine-tune it, or name the "
                'classes of a new one: id2label={0: "road", 1: "car"}.'
            )
        _check_missing(model, str(name), info["missing_keys"], {key for key, *_ in info["mismatched_keys"]})
        if backbone_alone and hasattr(model, "decoder"):
            logger.warning(f"{name} holds a backbone alone: the decoder and the heads of {cls.__name__} are new and must be trained.")
        if adapter is not None:
            info |= model.load_adapter(adapter, adapter_name, adapter_kwargs=adapter_kwargs).to_dict()
        # Tensors lie in memory as in the file, and CPU kernels round by alignment: outputs would differ in the last bit.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        return (model, info) if output_loading_info else model

    def load_adapter(self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs):
        """As in transformers; an adapter of another network, or one without safetensors weights, raises ValueError."""
        if peft_model_id is not None:
            check_adapter(peft_model_id, kwargs | (kwargs.get("adapter_kwargs") or {}))
        info = super().load_adapter(peft_model_id, adapter_name, **kwargs | {"ignore_mismatched_sizes": True})  # mismatches raise below
        if wrong := sorted(info.missing_keys | info.unexpected_keys | {key for key, *_ in info.mismatched_keys}):
            raise ValueError(
                f"{peft_model_id or 'the adapter'} was made for another network: {len(wrong)} weights of it are missing or do not fit "
                f"{type(self).__name__} (first: {wrong[0]}). Open the model again, and give an adapter of it."
            )
        return info

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """As in transformers, which calls this with all files on disk and the model on the meta device: errors are raised before the
        weights take memory. An adapter is loaded into the model that it was added to."""
        if state_dict is None and not getattr(model, "_hf_peft_config_loaded", False):
            _check_files(model, checkpoint_files, load_config)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)


def _resolve(name, options: dict) -> tuple:
    """Return the model to open, the adapter to add to it (or None), and options for the adapter; write the commit into `options`.

    name: of a model, or of an adapter in place of its model. options: of from_pretrained; those of adapters are removed.
    """
    adapter_kwargs = dict(options.pop("adapter_kwargs", None) or {})
    adapter = adapter_kwargs.pop("_adapter_model_path", None)  # from the Auto classes, which pass the name of its model
    if name is None or options.get("gguf_file"):
        return name, adapter, adapter_kwargs
    access = {key: options[key] for key in ("token", "local_files_only", "cache_dir") if key in options}
    options |= {"revision": resolve_revision(name, options.get("revision"), **access), "use_safetensors": True}
    if adapter is None and is_adapter(name, options):
        adapter, adapter_kwargs = name, {"revision": options["revision"]} | adapter_kwargs
        name, revision = base_of_adapter(name, options)
        options["revision"] = resolve_revision(name, revision, **access)
    check_weights(name, options)
    return name, adapter, access | adapter_kwargs


def _check_files(model: MsclPreTrainedModel, files: list[str], load_config) -> None:
    """Raise ValueError for files with missing weights, with other shapes or types, or without a large part of the model."""
    name, expected = str(load_config.pretrained_model_name_or_path), model.state_dict(keep_vars=True)
    stored = {}
    for file in files:
        for key, entry in stored_tensors(file).items():
            stored[rename_source_key(key, load_config.weight_mapping or [], [], model.base_model_prefix, expected)[0]] = entry
    check_types(name, stored, expected)
    loaded = {id(expected[key]) for key in stored.keys() & expected.keys()}  # a weight that is used twice is saved once
    mismatched = {key for key in stored.keys() & expected.keys() if tuple(expected[key].shape) != stored[key][1]}
    _check_missing(model, name, {key for key, tensor in expected.items() if id(tensor) not in loaded}, mismatched)
    loaded -= {id(expected[key]) for key in mismatched}
    check_new(name, [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in loaded])


def _check_missing(model: MsclPreTrainedModel, name: str, missing: set[str], mismatched: set[str]) -> None:
    """Raise ValueError for weights that should be in the checkpoint, or have another shape in it."""
    same_class, new = model.config.architectures == [type(model).__name__], set()
    optional = (*model._heads, "decoder") if model.config.architectures == ["MsclBackbone"] else model._heads
    for part in optional:
        keys = {key for key in model.state_dict() if key.startswith(f"{part}.")}
        if keys <= set(missing) and not (same_class and part == "classifier"):
            new |= keys
    wrong = sorted(set(missing) - new | {key for key in mismatched if not key.startswith(model._heads)})
    if wrong:
        raise ValueError(
            f"{name} lacks {len(wrong)} weights of {type(model).__name__} (first: {wrong[0]}): it was made for another backbone or "
            "decoder, or is damaged. Load it with the config.json that it was saved with."
        )

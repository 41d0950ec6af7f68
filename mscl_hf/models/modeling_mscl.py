"""The networks: a timm backbone, a decoder, and either contrastive heads or a classifier.

Self-contained (torch, timm, transformers and its sibling files *_mscl), so that a checkpoint can carry these files as remote
code and load where mscl_hf is not installed. Letters: B batch, C channels, h w feature grid, H W image, K classes, S blocks.
"""

import contextlib
import inspect
import re
import threading
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.core_model_loading import rename_source_key
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.hub import resolve_revision

from .blocks_mscl import calls_intermediates, update_statistics_once
from .checks_mscl import base_of_adapter, check_adapter, check_new, check_types, check_weights, is_adapter, stored
from .configuration_mscl import MsclConfig
from .decoders_mscl import DECODERS, conv_bn_relu
from .heads_mscl import GlobalHead, LocalHead, PixelHead
from .towers_mscl import TwoTowers

logger = logging.get_logger(__name__)
MOST_MODULES = 8000  # of a backbone; the deepest of timm has a third of them
TRANSFORMERS_KEYWORDS = frozenset(TransformersKwargs.__annotations__)  # what its Trainer, pipelines and models may pass to any model

# The image-segmentation pipeline looks only here before it complains about an unsupported model.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["mscl"] = "MsclForSemanticSegmentation"


class MsclPreTrainedModel(PreTrainedModel):
    """What all mscl_hf models share: how weights start, and that none of them goes missing silently."""

    config_class = MsclConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # timm's attention calls torch's scaled_dot_product_attention by itself
    accepts_loss_kwargs = False
    model_tags = ["timm", "mscl"]
    # Parts that a checkpoint of another stage, or with other options, lacks as a whole. Everything else must be there.
    _heads = ("classifier", "auxiliary_head", "global_head", "local_head", "pixel_head")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if getattr(module, "_is_timm", False):
            # timm has initialised its weights. Buffers outside the checkpoint are lost when the model is built on the
            # meta device, as from_pretrained does, and must be computed again.
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        elif isinstance(module, nn.Conv2d):
            is_classifier = getattr(module, "_is_classifier", False)
            init.normal_(module.weight, std=0.01) if is_classifier else init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu"
            )
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
            if isinstance(module, MsclBackbone):
                try:
                    module.timm_model.set_grad_checkpointing(enable)
                except (AssertionError, AttributeError) as error:
                    raise ValueError(f"timm's {module.config.backbone} has no gradient checkpointing; leave it out") from error
                module.gradient_checkpointing = enable

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that reads the image: transformers' libraries of quantization and adapters ask for it."""
        return next(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def save_pretrained(self, *args, **kwargs) -> None:
        """As in transformers; what from_pretrained would reject raises ValueError before anything is written."""
        if not getattr(self, "_hf_peft_config_loaded", False):  # of which transformers saves the adapter alone
            self.config.check_reopens()
            for name, tensor in self.named_parameters():
                if type(tensor).__module__.partition(".")[0] != "torch":
                    raise ValueError(
                        f"the weight {name} is a {type(tensor).__module__}.{type(tensor).__name__}, and quantized models are neither saved "
                        "nor opened; save the model before it is quantized"
                    )
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; a checkpoint without all weights raises instead of training, or predicting, on noise.

        New are only the heads of another stage: a classifier on a pre-training checkpoint, whose label set is given by
        `id2label` or `num_labels`; on a backbone that was saved alone also the decoder, which is logged. A classifier for other classes
        replaces one that is there with `ignore_mismatched_sizes=True`.
        Weights are read from safetensors only.
        """
        adapter_name = kwargs.pop("adapter_name", None)
        name, adapter, adapter_kwargs = _resolve(pretrained_model_name_or_path, kwargs)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        backbone_alone = model.config.architectures == ["MsclBackbone"]  # whose labels, if any, were those of another classifier
        nameless = not model.config.labels_given and (backbone_alone or model.config.id2label == PreTrainedConfig().id2label)
        if "classifier.weight" in info["missing_keys"] and nameless and model.config.architectures not in (None, [cls.__name__]):
            raise ValueError(
                f"{name} is {'a backbone alone' if backbone_alone else 'pre-trained'} and has no classifier; fine-tune it, or name the "
                'classes of a new one: id2label={0: "road", 1: "car"}'
            )
        _refuse_absent(model, str(name), info["missing_keys"], {key for key, *_ in info["mismatched_keys"]})
        if backbone_alone and hasattr(model, "decoder"):
            logger.warning(f"{name} holds a backbone alone: the decoder and the heads of {cls.__name__} are new and want training.")
        if adapter is not None:
            info |= model.load_adapter(adapter, adapter_name, adapter_kwargs=adapter_kwargs).to_dict()
        # Tensors lie in memory as in the file, and CPU kernels round by alignment: outputs would differ in the last bit.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        return (model, info) if output_loading_info else model

    def load_adapter(self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs):
        """As in transformers; an adapter of another network, or weights that are no safetensors, raise ValueError."""
        if peft_model_id is not None:
            check_adapter(peft_model_id, kwargs | (kwargs.get("adapter_kwargs") or {}))
        info = super().load_adapter(peft_model_id, adapter_name, **kwargs | {"ignore_mismatched_sizes": True})  # they are errors below
        if wrong := sorted(info.missing_keys | info.unexpected_keys | {key for key, *_ in info.mismatched_keys}):
            raise ValueError(
                f"{peft_model_id or 'the adapter'} was made for another network: {len(wrong)} weights of it are missing or do not fit "
                f"{type(self).__name__} (first: {wrong[0]}); open the model anew, and give an adapter of it"
            )
        return info

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """As in transformers, which comes here with all files on the disk and a model on the meta device: what is wrong is said before it
        takes memory. An adapter comes here with the model that it was added to."""
        if state_dict is None and not getattr(model, "_hf_peft_config_loaded", False):
            _check_files(model, checkpoint_files, load_config)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)


def _resolve(name, options: dict) -> tuple:
    """The model that from_pretrained opens, with its commit in `options`; the adapter that is added to it, if any, and options for that.

    name: of a model, or of an adapter in place of its model. options: of from_pretrained; those of adapters are taken out.
    """
    adapter_kwargs = dict(options.pop("adapter_kwargs", None) or {})
    adapter = adapter_kwargs.pop("_adapter_model_path", None)  # from the Auto classes, which give the name of its model
    if name is None or options.get("gguf_file"):
        return name, adapter, adapter_kwargs
    known = {key: options[key] for key in ("token", "local_files_only", "cache_dir") if key in options}
    options |= {"revision": resolve_revision(name, options.get("revision"), **known), "use_safetensors": True}
    if adapter is None and is_adapter(name, options):
        adapter, adapter_kwargs = name, {"revision": options["revision"]} | adapter_kwargs
        name, revision = base_of_adapter(name, options)
        options["revision"] = resolve_revision(name, revision, **known)
    check_weights(name, options)
    return name, adapter, known | adapter_kwargs


def _check_files(model: MsclPreTrainedModel, files: list[str], load_config) -> None:
    """ValueError for files that do not make this model: weights that are absent, of another shape or type, or much that is in no file."""
    name, own = str(load_config.pretrained_model_name_or_path), model.state_dict(keep_vars=True)
    found = {}
    for key, kind in {key: kind for file in files for key, kind in stored(file).items()}.items():
        found[rename_source_key(key, load_config.weight_mapping or [], [], model.base_model_prefix, own)[0]] = kind
    check_types(name, found, own)
    there = {id(own[key]) for key in found.keys() & own.keys()}  # a weight that is used twice is saved once
    mismatched = {key for key in found.keys() & own.keys() if tuple(own[key].shape) != found[key][1]}
    _refuse_absent(model, name, {key for key, tensor in own.items() if id(tensor) not in there}, mismatched)
    there -= {id(own[key]) for key in mismatched}
    check_new(name, [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in there])


def _refuse_absent(model: MsclPreTrainedModel, name: str, missing: set[str], mismatched: set[str]) -> None:
    """ValueError for weights that should have been in the checkpoint, or have another shape there."""
    own, new = model.config.architectures == [type(model).__name__], set()
    optional = (*model._heads, "decoder") if model.config.architectures == ["MsclBackbone"] else model._heads
    for part in optional:
        keys = {key for key in model.state_dict() if key.startswith(f"{part}.")}
        if keys <= set(missing) and not (own and part == "classifier"):
            new |= keys
    wrong = sorted(set(missing) - new | {key for key in mismatched if not key.startswith(model._heads)})
    if wrong:
        raise ValueError(
            f"{name} lacks {len(wrong)} weights of {type(model).__name__} (first: {wrong[0]}); "
            f"it was made for another backbone or decoder, or is damaged: load it with the config.json it was saved with"
        )


class MsclBackbone(BackboneMixin, MsclPreTrainedModel):
    """A timm model, or two towers of them, un-rewritten (the keys stay timm's), tapped at `config.out_indices`.

    Also a backbone for other people's decoders (`AutoBackbone`): `stage_names`, `out_features`, `channels` are as in transformers.
    """

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", *(rf"^{head}\." for head in MsclPreTrainedModel._heads)]
    has_attentions = False

    def __init__(self, config: MsclConfig):
        _refuse_foreign_weights(config)
        timm_model = _build_timm_model(config)
        levels = feature_levels(timm_model)
        config.name_stages(stage_names(levels))
        super().__init__(config)
        self.timm_model = calls_intermediates(timm_model)
        self.num_features = [level["num_chs"] for level in levels]  # of every stage, tapped or not
        for module in self.timm_model.modules():
            module._is_timm = True
            if isinstance(module, PatchEmbed) and all(config.size_multiple % side == 0 for side in module.patch_size):
                module.img_size = None  # no assertions on sides, which fit: torch.compile binds a graph to a side that is formatted
        self._interpolates_positions = any(name.endswith("pos_embed") for name, _ in self.timm_model.named_parameters())
        self._tied_weights_keys = _shared_weights(self.timm_model, "timm_model.")
        self._no_split_modules = [type(self.timm_model).__name__]  # what is added or joined must lie on one device
        self.gradient_checkpointing = False
        self._timm_is_uninitialized = any(parameter.is_meta for parameter in timm_model.parameters())
        self.post_init()

    def _initialize_weights(self, module: nn.Module, *args) -> None:
        if module is self:  # here, as transformers skips _init_weights for modules without parameters of their own
            self._init_timm_weights()
        super()._initialize_weights(module, *args)

    @torch.no_grad()
    def _init_timm_weights(self) -> None:
        """Initialize the weights of a backbone that was built on the meta device, as timm does; those of a checkpoint stay."""
        if not self._timm_is_uninitialized or all(parameter.is_meta for parameter in self.timm_model.parameters()):
            return
        saved = self.timm_model.state_dict(keep_vars=True)
        new = {name for name, tensor in saved.items() if not (tensor.is_meta or getattr(tensor, "_is_hf_initialized", False))}
        if not new:
            return
        with torch.device("cpu"):
            values = _build_timm_model(self.config).state_dict()
        for name in new:
            value, tensor = values[name].to(saved[name].device), saved[name]
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements)  # of the mesh's first process
            tensor.copy_(value)
        self._timm_is_uninitialized = False

    @property
    def taps(self) -> list[int]:
        """Indices of the tapped stages, shallow to deep."""
        return [index % len(self.stage_names) for index in self.out_indices]

    @property
    def strides(self) -> list[int]:
        """Nominal stride in px of each tapped map."""
        return [feature_levels(self.timm_model)[index]["reduction"] for index in self.taps]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BackboneOutput | tuple:
        """pixel_values (B, C, H, W), normalised as the configuration says -> feature_maps: a tuple of (B, C_i, h_i, w_i).

        hidden_states, if asked for: the maps of all stages, in the order of `stage_names`.
        """
        _reject_unknown(self, kwargs)
        if self.training and not torch.compiler.is_compiling():
            update_statistics_once(self.timm_model)
        pixel_values = self._fit_size(pixel_values)
        everything = _chosen(output_hidden_states, self.config.output_hidden_states)
        indices = list(range(len(self.stage_names))) if everything else self.taps
        maps = self.timm_model(
            pixel_values, indices=indices, norm=self.config.norm_features, output_fmt="NCHW", intermediates_only=True
        )
        tapped = tuple(maps[index] for index in self.taps) if everything else tuple(maps)
        out = BackboneOutput(feature_maps=tapped, hidden_states=tuple(maps) if everything else None)
        return out if _chosen(return_dict, self.config.return_dict) else out.to_tuple()

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in px that the family is given for an image of this size: the nearest that it accepts."""
        multiple = self.config.size_multiple
        if self.config.fixed_size is not None:
            return self.config.fixed_size, self.config.fixed_size
        if multiple == 1:
            return size
        # the nearest in integers, from halfway to an even number as round() does, because an exported graph has symbols for sides
        cells = ((2 * side + multiple - 1 + side // multiple % 2) // (2 * multiple) for side in size)
        at_least_one = max if torch.jit.is_tracing() else torch.sym_max  # torch.jit.trace passes sides as tensors
        return tuple(at_least_one(1, count) * multiple for count in cells)

    def _fit_size(self, pixel_values: Tensor) -> Tensor:
        """Resizing, unlike padding, keeps cell i at (i + 0.5) / h."""
        size = tuple(pixel_values.shape[-2:])
        wanted = self.input_size(size)
        if self._interpolates_positions and torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled():
            # One graph a size, as formatting a side makes Dynamo fix it: torch cannot trace the gradient of bicubic for symbolic sizes.
            size = tuple(int(f"{side}") for side in size)
        takes_any_size = self.config.size_multiple == 1 and self.config.fixed_size is None
        is_recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # comparing would bind the graph to the example's size
        if takes_any_size or not is_recorded and wanted == size:
            return pixel_values
        return F.interpolate(pixel_values, size=wanted, mode="bilinear", align_corners=False, antialias=True)


def _build_timm_model(config: MsclConfig) -> nn.Module:
    with _at_most_modules(config):
        if config.two_towers:
            return TwoTowers(config.backbone, **config.backbone_kwargs)
        return timm.create_model(
            config.backbone, pretrained=False, num_classes=0, in_chans=config.num_channels, **config.backbone_kwargs
        )


def _shared_weights(module: nn.Module, prefix: str) -> dict[str, str]:
    """Names of weights that a module holds twice (CoaT does) -> the name under which they are saved."""
    first: dict[int, str] = {}
    names = [(id(p), prefix + name) for name, p in module.named_parameters(remove_duplicate=False)]
    return {name: first[key] for key, name in names if first.setdefault(key, name) != name}


def _refuse_foreign_weights(config: MsclConfig) -> None:
    """A configuration, which may be a stranger's, must not make timm open files or fetch models."""
    ours = ("checkpoint_path", "cache_dir", "num_classes", "in_chans")
    named = [key for key in config.backbone_kwargs if key in ours or key.startswith("pretrained")]
    if named or not re.fullmatch(r"[A-Za-z0-9_.]+", config.backbone or ""):
        what = f"backbone_kwargs {', '.join(named)}" if named else f"backbone {config.backbone!r}"
        raise ValueError(f"the configuration has {what}; give a plain timm name and options of its architecture")


@contextlib.contextmanager
def _at_most_modules(config: MsclConfig):
    """Ends the building of a backbone that has no end: families call their depth by many names, but each block is a module."""
    thread, count = threading.get_ident(), 0

    def seen(*_) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MOST_MODULES:
            raise ValueError(
                f"the configuration asks for more than {MOST_MODULES:,} modules of {config.backbone}; give less depth in backbone_kwargs, "
                "or a config.json as it was saved"
            )

    hook = register_module_module_registration_hook(seen)
    try:
        yield
    finally:
        hook.remove()


def feature_levels(timm_model: nn.Module) -> list[dict]:
    """timm's description of a model's stages: num_chs, reduction, module of each."""
    info = timm_model.feature_info
    return list(info.info if hasattr(info, "info") else info)


def stage_names(levels: list[dict]) -> list[str]:
    """timm's module names, numbered where a family (CrossViT) uses one twice."""
    names = [level["module"] for level in levels]
    return [name if names.count(name) == 1 else f"{name}.{index}" for index, name in enumerate(names)]


def _decoder(channels: list[int], strides: list[int], config: MsclConfig) -> nn.Module:
    if config.decoder_type not in DECODERS:
        raise ValueError(f"the configuration has decoder_type {config.decoder_type!r}; give one of {', '.join(DECODERS)}")
    return DECODERS[config.decoder_type](channels, strides, config)


def _reject_unknown(model: MsclPreTrainedModel, keywords: dict) -> None:
    """TypeError for keywords of a forward pass that neither the model nor transformers has."""
    if unknown := [name for name in keywords if name not in TRANSFORMERS_KEYWORDS]:
        accepted = [name for name in inspect.signature(model.forward).parameters if name != "kwargs"]
        raise TypeError(f"{type(model).__name__}.forward has no argument {unknown[0]!r}; expected {', '.join(accepted)}.")


def _chosen(given: bool | None, default: bool) -> bool:
    return default if given is None else given


@dataclass
class MsclPreTrainingOutput(ModelOutput):
    """global_embeds (B, E_g), local_embeds (B, S*S, E_l), pixel_embeds (B', E_p, h, w): unit length, float32.

    None where a head was not asked for. B' is the number of images given to the pixel head. feature_maps are the taps,
    hidden_states, if asked for, the maps of all stages.
    """

    global_embeds: Tensor | None = None
    local_embeds: Tensor | None = None
    pixel_embeds: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class MsclForPreTraining(MsclPreTrainedModel):
    """Backbone, decoder and the contrastive heads of `config.heads`; what is transferred are the backbone and the decoder."""

    _auto_class = "AutoModelForPreTraining"
    _keys_to_ignore_on_load_unexpected = [rf"^{head}\." for head in MsclPreTrainedModel._heads]

    def __init__(self, config: MsclConfig):
        super().__init__(config)
        self.backbone = MsclBackbone(config)
        channels = self.backbone.channels
        self.decoder = _decoder(channels, self.backbone.strides, config)
        self._no_split_modules = [type(self.decoder).__name__]
        coarse = config.decoder_channels if config.attach == "decoder" else channels[-1]
        fine = channels[-1] if config.attach == "backbone" else config.decoder_channels
        self.global_head = self.local_head = self.pixel_head = None
        with torch.random.fork_rng():  # whichever heads there are, backbone and decoder start from the same weights
            if "global" in config.heads:
                self.global_head = GlobalHead(coarse, config.global_dim)
            if "local" in config.heads:
                self.local_head = LocalHead(coarse, config.local_dim, config.local_grid, config.local_layers)
            if "pixel" in config.heads:
                self.pixel_head = PixelHead(fine, config.pixel_dim, config.pixel_layers, config.pixel_bn)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        heads: tuple[str, ...] | None = None,
        boxes: Tensor | None = None,
        pixel_images: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MsclPreTrainingOutput | tuple:
        """Embeddings of pixel_values (B, C, H, W).

        heads: which of global, local, pixel to compute; None = those that the network has. boxes (B, 4): where the local blocks lie, see `LocalHead`.
        pixel_images: indices of the images that go through the pixel head (those with labels); None = all.
        """
        _reject_unknown(self, kwargs)
        heads = self.config.heads if heads is None else heads
        if absent := sorted(set(heads) - set(self.config.heads)):
            raise ValueError(f"this network has the heads {self.config.heads}, not {absent}; name them in MsclConfig.heads")
        seen = self.backbone(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        maps, attach = seen.feature_maps, self.config.attach
        decoded = self.decoder(list(maps)) if attach == "decoder" else None
        coarse = decoded if attach == "decoder" else maps[-1]
        out = MsclPreTrainingOutput(
            global_embeds=self.global_head(coarse) if "global" in heads else None,
            local_embeds=self.local_head(coarse, boxes) if "local" in heads else None,
            pixel_embeds=self._pixel_embeds(maps, decoded, pixel_images) if "pixel" in heads else None,
            feature_maps=maps,
            hidden_states=seen.hidden_states,
        )
        return out if _chosen(return_dict, self.config.return_dict) else out.to_tuple()

    def _pixel_embeds(self, maps: tuple[Tensor, ...], decoded: Tensor | None, images: Tensor | None) -> Tensor:
        def chosen(x: Tensor) -> Tensor:
            return x if images is None else x[images]

        if self.config.attach == "backbone":
            features = chosen(maps[-1])
        elif decoded is None:  # "ancestor": images without labels need no decoder
            features = self.decoder([chosen(x) for x in maps])
        else:
            features = chosen(decoded)
        grid = self.config.pixel_grid
        height, width = features.shape[-2:]
        # 65: DeepLab's grid for crops of 513 px at stride 8
        size = [grid, max(1, round(grid * width / height))] if grid else [min(side, 65) for side in (height, width)]
        if size != list(features.shape[-2:]):
            features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return self.pixel_head(features)


class MsclForSemanticSegmentation(MsclPreTrainedModel):
    """Backbone, decoder and a 1x1 classifier, with an auxiliary FCN head on the tap before the last while training."""

    _auto_class = "AutoModelForSemanticSegmentation"
    # An auxiliary head serves training only, and may be left out of what is loaded.
    _keys_to_ignore_on_load_unexpected = [rf"^{head}\." for head in ("auxiliary_head", "global_head", "local_head", "pixel_head")]

    def __init__(self, config: MsclConfig):
        if config.num_labels < 2:
            raise ValueError("the label set has 1 class, of which every pixel would be; give 2 or more, background among them")
        super().__init__(config)
        self.backbone = MsclBackbone(config)
        channels = self.backbone.channels
        self.decoder = _decoder(channels, self.backbone.strides, config)
        self._no_split_modules = [type(self.decoder).__name__]
        self.dropout = nn.Dropout2d(config.decoder_dropout)
        self.classifier = _classifier(config.decoder_channels, config.num_labels)
        self.auxiliary_head = None
        if config.use_auxiliary_head and len(channels) > 1:
            hidden = max(channels[-2] // 4, 16)
            self.auxiliary_head = nn.Sequential(
                conv_bn_relu(channels[-2], hidden, 3), _classifier(hidden, config.num_labels)
            )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput | tuple:
        """pixel_values (B, C, H, W) -> logits (B, K, h, w); with labels (B, H, W) also the loss.

        The loss is cross-entropy on logits brought to the labels' size, plus `auxiliary_loss_weight` times the same of the
        auxiliary head; pixels labelled 255 do not count. hidden_states, if asked for: the maps of all stages of the backbone.
        """
        _reject_unknown(self, kwargs)
        seen = self.backbone(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits, auxiliary = self._classify(seen.feature_maps, with_auxiliary=labels is not None)
        loss = None if labels is None else self.segmentation_loss(logits, labels, auxiliary)
        out = SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=seen.hidden_states)
        return out if _chosen(return_dict, self.config.return_dict) else out.to_tuple()

    def both_logits(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K, h, w) of the classifier and of the auxiliary head, None where there is no such head."""
        return self._classify(self.backbone(pixel_values, return_dict=True).feature_maps, with_auxiliary=True)

    def _classify(self, maps: tuple[Tensor, ...], with_auxiliary: bool) -> tuple[Tensor, Tensor | None]:
        logits = self.classifier(self.dropout(self.decoder(list(maps)))).float()
        if self.auxiliary_head is None or not with_auxiliary:
            return logits, None
        return logits, self.auxiliary_head(maps[-2]).float()

    def segmentation_loss(self, logits: Tensor, labels: Tensor, auxiliary: Tensor | None) -> Tensor:
        """Main loss (B, K, h, w) against labels (B, H, W), plus the weighted auxiliary one."""
        loss = self.cross_entropy(logits, labels)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary_loss_weight * self.cross_entropy(auxiliary, labels)
        return loss

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, K, h, w), brought to the size of the labels (B, H, W)."""
        ignore_index = self.config.semantic_loss_ignore_index
        if logits.shape[-2:] != labels.shape[-2:]:
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
        return total / (labels != ignore_index).sum().clamp(min=1)  # where nothing is labelled: zero with a graph, and no NaN


def _classifier(channels: int, num_labels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_labels, 1)
    layer._is_classifier = True
    return layer

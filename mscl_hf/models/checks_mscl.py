"""What is refused of a checkpoint, which may be a stranger's, before memory is taken or the network asked.

Self-contained (safetensors, transformers), so that a checkpoint can carry it as remote code.
"""

import json
import os
import reprlib
import unicodedata
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.utils import cached_file, has_file, is_peft_available

JSON_BYTES = 4 * 1024**2  # of config.json, an index, a record; the configuration of a thousand classes has a twentieth of it
MOST_CLASSES, MOST_CHANNELS, MOST_PIXELS = 10_000, 4096, 16_384
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT calls them
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FLOATS, WHOLE = ("F32", "F16", "BF16", "F64"), ("I64", "I32", "I16", "I8", "U8")  # as safetensors calls them
MOST_NEW = 1024**3  # bytes of a model that no file brings: heads of another stage, buffers that are computed
DTYPES = ("float32", "float16", "bfloat16", "float64")
SILENT = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
PLACES = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "proxies")  # how from_pretrained is told where files lie
# What transformers writes of its own into config.json. It would act on more: other files, other repositories, kernels to fetch.
OF_TRANSFORMERS = {
    *PreTrainedConfig().to_dict(), "torch_dtype", "num_labels", "auto_map", "name_or_path", "_commit_hash", "custom_pipelines", "use_cache",
    "gradient_checkpointing", "tie_word_embeddings", "torchscript", "finetuning_task", "task_specific_params", "pruned_heads",
}  # fmt: skip


def shown(value) -> str:
    """A stranger's value in a message, cut off: aliases and lists in lists would fill it."""
    text = reprlib.repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def is_plain(text) -> bool:
    """Whether it is a text that a terminal can be given: no control characters, which escape codes begin with, and no halves of others."""
    return type(text) is str and not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


# A field is what it wants, in words, and a function that says whether a value is that.


def _whole(least: int, most: int, or_none: bool = False) -> tuple:
    def fits(value) -> bool:
        return or_none if value is None else type(value) is int and least <= value <= most

    return f"a whole number of {least}..{most}" + " or null" * or_none, fits


def _number(least: float, most: float) -> tuple:
    return f"a number of {least:g}..{most:g}", lambda value: type(value) in (int, float) and least <= value <= most  # which NaN is not


def _one_of(*names: str) -> tuple:
    return f"one of {', '.join(names)}", lambda value: type(value) is str and value in names


def _list_of(field: tuple, or_none: bool = True, most: int = 1024) -> tuple:
    def fits(value) -> bool:
        return or_none if value is None else isinstance(value, (list, tuple)) and len(value) <= most and all(map(field[1], value))

    return f"at most {most} values in a list, each {field[0]}", fits


def _options(most: int, or_none: bool = True) -> tuple:
    """Of a constructor."""
    def fits(value, depth: int = 4) -> bool:
        if isinstance(value, (dict, list, tuple)):
            if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
                return False
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            return depth > 0 and len(value) <= 256 and all(fits(part, depth - 1) for part in parts)
        if isinstance(value, str):
            return len(value) <= 256
        return value is None or type(value) in (int, float, bool) and -most <= value <= most

    said = f"options by name: texts up to 256 characters, numbers up to {most}, lists and options of these, 4 deep"
    return said, lambda value: or_none if value is None else isinstance(value, dict) and fits(value)


def _by_name(value) -> bool:
    if type(value) is not dict:
        return value is None
    return len(value) <= MOST_CLASSES and all(type(part) is not str or is_plain(part) for part in (*value, *value.values()))


def _is_dtype(value) -> bool:
    return value is None or (value if isinstance(value, str) else str(value).removeprefix("torch.")) in DTYPES


def _label_map() -> tuple:
    def fits(value) -> bool:
        if value is None:
            return True
        stored = isinstance(value, dict) and len(value) <= 65_536 and all(str(i).isdecimal() and len(str(i)) <= 5 for i in value)
        return stored and all(type(train) is int and 0 <= train <= 255 for train in value.values())

    return "class ids of 0..255 by stored id", fits


def _contrast() -> tuple:
    said, fits = _options(2**31)
    return f"{said}, the method a text", lambda value: fits(value) and (not value or type(value.get("method", "")) is str)


def _range() -> tuple:
    def fits(value) -> bool:
        least = -(2**31)
        whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(part) is int for part in value)
        return value is None or whole and least <= value[0] < value[1] < 2**31

    return "two whole numbers, the lower one first, or null", fits


TEXT = ("a text of at most 256 characters", lambda value: value is None or is_plain(value) and len(value) <= 256)
FLAG = ("true or false", lambda value: type(value) is bool)
FLAG_OR_NONE = ("true, false or null", lambda value: value is None or type(value) is bool)
PIXELS = _whole(1, MOST_PIXELS, or_none=True)
CHANNELS = _whole(1, MOST_CHANNELS)
FIELDS = {
    "backbone": TEXT, "backbone_kwargs": _options(MOST_PIXELS), "contrast": _contrast(), "two_towers": FLAG,
    "num_channels": CHANNELS, "out_indices": _list_of(_whole(-1024, 1023)), "out_features": _list_of(TEXT), "stage_names": _list_of(TEXT),
    "size_multiple": _whole(1, MOST_PIXELS), "fixed_size": PIXELS, "norm_features": FLAG,
    "decoder_type": TEXT, "decoder_channels": CHANNELS, "decoder_rates": _list_of(_whole(1, MOST_PIXELS), most=16),
    "decoder_dropout": _number(0, 1), "heads": _list_of(_one_of("global", "local", "pixel"), most=3),
    "global_dim": CHANNELS, "local_dim": CHANNELS, "pixel_dim": CHANNELS, "local_grid": _whole(1, MOST_PIXELS),
    "local_layers": _whole(1, 64), "pixel_layers": _whole(1, 64), "pixel_bn": FLAG, "pixel_grid": PIXELS,
    "attach": _one_of("ancestor", "backbone", "decoder"), "bn_views": _one_of("joint", "separate"),
    "use_auxiliary_head": FLAG, "auxiliary_loss_weight": _number(0, 1e6), "semantic_loss_ignore_index": _whole(-(2**31), 2**31),
    "image_size": _whole(1, MOST_PIXELS), "image_width": PIXELS, "base_size": _whole(0, MOST_PIXELS, or_none=True),
    "image_range": _range(), "label_map": _label_map(), "reduce_labels": FLAG,
    "image_mean": _list_of(_number(-1e6, 1e6)), "image_std": _list_of(_number(1e-9, 1e6)),
    "num_labels": _whole(1, MOST_CLASSES), "architectures": _list_of(TEXT),
    "id2label": (f"names of at most {MOST_CLASSES} classes without control characters", _by_name),
    "label2id": (f"ids of at most {MOST_CLASSES} classes without control characters", _by_name),
    "dtype": (f"one of {', '.join(DTYPES)}", _is_dtype),
    "return_dict": FLAG_OR_NONE, "output_hidden_states": FLAG_OR_NONE, "output_attentions": FLAG_OR_NONE,
    "custom_pipelines": _options(2**31, or_none=False),
}  # fmt: skip
FIELDS["torch_dtype"] = FIELDS["dtype"]


def check_fields(fields: dict) -> None:
    """ValueError for the first field of a configuration that has a wrong type or is beyond its bounds; only then are they used."""
    for name, value in fields.items():
        wanted, fits = FIELDS.get(name, ("", lambda value: True))
        if not fits(value):
            raise ValueError(f"the configuration has {name} {shown(value)}; give {wanted}, or a config.json as it was saved")
    channels = fields.get("num_channels", 3)
    for name in ("image_mean", "image_std"):
        if fields.get(name) and len(fields[name]) not in (channels, 3):  # 3: of colour, where nobody has said another
            raise ValueError(f"the configuration has {len(fields[name])} values of {name}; give as many as it has channels, {channels}")


def check_keys(config: dict, own: set[str]) -> None:
    """ValueError for keys of a config.json that no mscl_hf model has, or that is another's. own: the fields of its configuration class."""
    if config.get("model_type", "mscl") != "mscl":
        whose = shown(config.get("architectures") or config["model_type"])
        raise ValueError(f"the configuration is that of {whose}, which is no model of mscl_hf; give one that is")
    if "quantization_config" in config:
        raise ValueError(
            "the configuration has a quantization_config, and quantized models are neither saved nor opened; save the model before it is "
            "quantized, and quantize what from_pretrained returns"
        )
    if unknown := sorted(set(config) - own - OF_TRANSFORMERS, key=str):
        raise ValueError(
            f"the configuration has the unknown field {shown(unknown[0])}; remove it, or update mscl_hf if a newer version wrote it"
        )


def check_size(file: str | os.PathLike, size: int) -> None:
    """ValueError for a file of JSON of more bytes than are read."""
    if size > JSON_BYTES:
        raise ValueError(f"{file} has {size:,} bytes; give a {os.path.basename(file)} of at most {JSON_BYTES:,}")


def read_json(file: str | os.PathLike) -> dict:
    """The fields in an untrusted JSON file, whose size is checked first. Raises ValueError, among them json's own for what is no JSON."""
    check_size(file, os.path.getsize(file))
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise ValueError(f"{file} cannot be read ({error}); give a {os.path.basename(file)} as it was saved") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; give a {os.path.basename(file)} as it was saved, with its fields by name")
    return found


def check_weights(name: str | os.PathLike, options: dict) -> None:
    """Raise unless a model, a folder or a Hub name, has its weights as safetensors; other files of weights are never opened.

    options: of from_pretrained.
    """
    where = {key: options[key] for key in PLACES if options.get(key) is not None}
    names = [_variant(file, options.get("variant")) for file in (WEIGHTS, INDEX)]
    if cached_file(name, names[0], **where, **SILENT) is None:
        index = cached_file(name, names[1], **where, **SILENT)
        if index is not None:
            _check_index(name, Path(index))
        elif pickled := _pickled(name, where):
            raise ValueError(
                f"{name} has no {names[0]} but {pickled}, which could run code when opened and is not; give a model saved as safetensors"
            )
        else:
            raise OSError(f"{name} has no {names[0]}, or it cannot be reached; give a model saved as safetensors")
    if is_peft_available() and cached_file(name, ADAPTER, **where, **SILENT) is not None:
        raise ValueError(
            f"{name} holds an adapter beside a whole model, and from_pretrained opens one of them; move {ADAPTER} and {ADAPTER_WEIGHTS} to "
            "another folder, and call load_adapter"
        )


def is_adapter(name: str | os.PathLike, options: dict) -> bool:
    """Whether there is an adapter and no model at `name`, a folder or a Hub name. options: of from_pretrained."""
    where = {key: options[key] for key in PLACES if options.get(key) is not None}
    if cached_file(name, "config.json", **where, **SILENT) is not None:
        return False
    return cached_file(name, ADAPTER, **where, **SILENT) is not None


def base_of_adapter(name: str | os.PathLike, options: dict) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter was made for. options: of from_pretrained.

    Raises ValueError where the adapter names no model, or peft is not installed.
    """
    if not is_peft_available():
        raise ValueError(f"{name} holds an adapter, which needs peft; install it by pip install peft")
    where = {key: options[key] for key in PLACES if options.get(key) is not None}
    fields = read_json(cached_file(name, ADAPTER, **where))
    base, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    if not (is_plain(base) and base) or not (revision is None or is_plain(revision)):
        raise ValueError(f"{ADAPTER} of {name} has base_model_name_or_path {shown(base)}; open its model, and call load_adapter")
    return base, revision


def check_adapter(name: str | os.PathLike, options: dict) -> None:
    """Raise unless an adapter, a folder or a Hub name, is one by itself and has its weights as safetensors.

    options: of load_adapter.
    """
    where = {key: options[key] for key in PLACES if options.get(key) is not None}
    if (file := cached_file(name, ADAPTER, **where, **SILENT)) is None:
        raise ValueError(f"{name} has no {ADAPTER}, or it cannot be reached; give an adapter saved by PEFT")
    if read_json(file).get("peft_type") == "XLORA":
        raise ValueError(f"{ADAPTER} of {name} has peft_type XLORA, which opens other adapters; give one that is complete by itself")
    if cached_file(name, ADAPTER_WEIGHTS, **where, **SILENT) is None:
        raise ValueError(
            f"{name} has no {ADAPTER_WEIGHTS}, and weights of other kinds could run code when opened and are not; save it by "
            "save_pretrained of PEFT, which writes safetensors"
        )


def stored(file: str | os.PathLike) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{key: (type, shape)} of a file of safetensors; its header alone is read."""
    with safe_open(file, "pt") as weights:
        slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
        return {key: (found.get_dtype(), tuple(found.get_shape())) for key, found in slices.items()}


def check_types(name: str, found: dict[str, tuple], wanted: dict) -> None:
    """ValueError unless every tensor is floating-point where the model's is, and whole where that is: others would be converted without
    a word. found: as `stored` returns it, by the model's names. wanted: the model's state_dict."""
    for key in found.keys() & wanted.keys():
        kinds = FLOATS if wanted[key].is_floating_point() else WHOLE
        if found[key][0] not in kinds:
            raise ValueError(f"{name} stores {key} as {found[key][0]}; give a model that has it as one of {', '.join(kinds)}")


def check_new(name: str, tensors: list) -> None:
    """ValueError where a model has too much that is in none of its files. tensors: these, without memory yet."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > MOST_NEW:
        raise ValueError(
            f"the configuration of {name} asks for {size / 1e9:.1f} GB that its files do not hold, and at most {MOST_NEW / 1e9:.1f} GB are "
            "made; give it with the config.json that it was saved with"
        )


def _variant(file: str, variant: str | None) -> str:
    start, _, end = file.rpartition(".")
    return f"{start}.{variant}.{end}" if variant else file


def _check_index(name: str | os.PathLike, index: Path) -> None:
    """Shards must be safetensors that lie beside their index."""
    try:
        files = set(read_json(index)["weight_map"].values())
        wrong = sorted(file for file in files if not file.endswith(".safetensors") or os.path.basename(file) != file or "\\" in file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{index.name} of {name} cannot be read ({what}); give a model as it was saved") from error
    if wrong:
        raise ValueError(f"{index.name} of {name} names {wrong[0]!r}; give a model whose weights are *.safetensors beside it")


def _pickled(name: str | os.PathLike, where: dict) -> str | None:
    """A file of weights that is there and no safetensors."""
    folder = Path(name) / where.get("subfolder", "")
    if folder.is_dir():
        return next((file.name for file in sorted(folder.iterdir()) if file.name.removesuffix(".index.json").endswith(PICKLED)), None)
    there = {key: value for key, value in where.items() if key != "subfolder"}
    files = (os.path.join(where.get("subfolder", ""), file) for file in ("pytorch_model.bin", "pytorch_model.bin.index.json"))
    return next((file for file in files if has_file(name, file, **there)), None)  # it is asked for, and not fetched

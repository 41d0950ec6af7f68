"""Validation of untrusted checkpoints, before they take memory or the network is used.

Self-contained (safetensors, transformers), so that a checkpoint can carry this file as remote code.
"""

import json
import os
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import cached_file, has_file, is_peft_available

from .fields_mscl import is_plain, shown

JSON_BYTES = 4 * 1024**2  # of config.json, an index, a record; the configuration of a thousand classes has a twentieth of it
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FLOATS, INTEGERS = ("F32", "F16", "BF16", "F64"), ("I64", "I32", "I16", "I8", "U8")  # safetensors' names
MOST_NEW = 1024**3  # bytes of a model that are in no file: new heads, computed buffers
NO_ERRORS = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
LOCATION = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "proxies")  # options of from_pretrained for finding files
# What transformers writes into config.json by itself. It would act on more: other files, other repositories, kernels to download.
OF_TRANSFORMERS = {
    *PreTrainedConfig().to_dict(), "torch_dtype", "num_labels", "auto_map", "name_or_path", "_commit_hash", "custom_pipelines", "use_cache",
    "gradient_checkpointing", "tie_word_embeddings", "torchscript", "finetuning_task", "task_specific_params", "pruned_heads",
}  # fmt: skip


def check_keys(config: dict, own_fields: set[str]) -> None:
    """Raise ValueError for a config.json of another library, or with a field that no mscl_hf model has."""
    if config.get("model_type", "mscl") != "mscl":
        model = shown(config.get("architectures") or config["model_type"])
        raise ValueError(f"the configuration is of {model}; expected a model of mscl_hf. Give another folder or name.")
    if "quantization_config" in config:
        raise ValueError(
            "the configuration has a quantization_config, and quantized models are neither saved nor opened. Save the model before it is "
            "quantized, and quantize what from_pretrained returns."
        )
    if unknown := sorted(set(config) - own_fields - OF_TRANSFORMERS, key=str):
        raise ValueError(
            f"the configuration has the unknown field {shown(unknown[0])}. Remove it, or update mscl_hf if a newer version wrote it."
        )


def check_size(file: str | os.PathLike, size: int) -> None:
    """Raise ValueError for a JSON file of more than JSON_BYTES bytes."""
    if size > JSON_BYTES:
        raise ValueError(f"{file} has {size:,} bytes; expected at most {JSON_BYTES:,}. Give the {os.path.basename(file)} as it was saved.")


def read_json(file: str | os.PathLike) -> dict:
    """Return the fields in an untrusted JSON file. Raises ValueError, with json's own errors among them."""
    check_size(file, os.path.getsize(file))
    name = os.path.basename(file)
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deeply nested lists
        raise ValueError(f"{file} cannot be read ({error}). Give the {name} as it was saved.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected fields by name. Give the {name} as it was saved.")
    return content


def check_weights(name: str | os.PathLike, options: dict) -> None:
    """Raise unless a model (a folder, or a name on the Hub) has safetensors weights. No other file of weights is opened.

    options: of from_pretrained.
    """
    location = _location(options)
    weights, index = (_variant(file, options.get("variant")) for file in (WEIGHTS, INDEX))
    if cached_file(name, weights, **location, **NO_ERRORS) is None:
        index_file = cached_file(name, index, **location, **NO_ERRORS)
        if index_file is not None:
            _check_index(name, Path(index_file))
        elif pickle_name := _find_pickle(name, location):
            raise ValueError(
                f"{name} has {pickle_name}, which could run code when it is opened; expected {weights}. Give a model saved as safetensors."
            )
        else:
            raise OSError(f"{name} has no {weights}, or cannot be reached. Give a model saved as safetensors.")
    if is_peft_available() and cached_file(name, ADAPTER, **location, **NO_ERRORS) is not None:
        raise ValueError(
            f"{name} holds an adapter beside a whole model, and from_pretrained opens one of them. Move {ADAPTER} and {ADAPTER_WEIGHTS} to "
            "another folder, and call load_adapter."
        )


def is_adapter(name: str | os.PathLike, options: dict) -> bool:
    """Whether a folder or a name on the Hub holds an adapter and no model. options: of from_pretrained."""
    location = _location(options)
    if cached_file(name, "config.json", **location, **NO_ERRORS) is not None:
        return False
    return cached_file(name, ADAPTER, **location, **NO_ERRORS) is not None


def base_of_adapter(name: str | os.PathLike, options: dict) -> tuple[str, str | None]:
    """Return name and revision of the model that an adapter belongs to. options: of from_pretrained.

    Raises ValueError where the adapter names no model, or peft is not installed.
    """
    if not is_peft_available():
        raise ValueError(f"{name} holds an adapter, which needs peft. Install it by pip install peft.")
    fields = read_json(cached_file(name, ADAPTER, **_location(options)))
    base, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    if not (is_plain(base) and base) or not (revision is None or is_plain(revision)):
        raise ValueError(
            f"base_model_name_or_path in {ADAPTER} of {name} is {shown(base)}; expected a model. Open the model, and call load_adapter."
        )
    return base, revision


def check_adapter(name: str | os.PathLike, options: dict) -> None:
    """Raise ValueError unless a folder or a name on the Hub holds a complete adapter with safetensors weights.

    options: of load_adapter.
    """
    location = _location(options)
    if (file := cached_file(name, ADAPTER, **location, **NO_ERRORS)) is None:
        raise ValueError(f"{name} has no {ADAPTER}, or cannot be reached. Give an adapter saved by PEFT.")
    if read_json(file).get("peft_type") == "XLORA":
        raise ValueError(f"peft_type in {ADAPTER} of {name} is XLORA, which opens other adapters. Give an adapter without others.")
    if cached_file(name, ADAPTER_WEIGHTS, **location, **NO_ERRORS) is None:
        raise ValueError(
            f"{name} has no {ADAPTER_WEIGHTS}, and other files of weights could run code when they are opened. Save the adapter by PEFT's "
            "save_pretrained, which writes safetensors."
        )


def stored_tensors(file: str | os.PathLike) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {key: (type, shape)} from the header of a safetensors file."""
    with safe_open(file, "pt") as weights:
        slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
        return {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def check_types(name: str, stored: dict[str, tuple], expected: dict[str, Tensor]) -> None:
    """Raise ValueError unless floating-point tensors are stored as floating-point, and integers as integers.

    transformers would convert others silently. stored: of `stored_tensors`, by the model's keys. expected: the model's state_dict.
    """
    for key in stored.keys() & expected.keys():
        types = FLOATS if expected[key].is_floating_point() else INTEGERS
        if stored[key][0] not in types:
            raise ValueError(f"{name} stores {key} as {stored[key][0]}; expected one of {', '.join(types)}. Give a model as it was saved.")


def check_new(name: str, tensors: list[Tensor]) -> None:
    """Raise ValueError where the tensors of a model that are in no file are too large. They are on the meta device."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > MOST_NEW:
        raise ValueError(
            f"the configuration of {name} describes {size / 1e9:.1f} GB that its files do not hold; expected at most "
            f"{MOST_NEW / 1e9:.1f} GB. Give the model with the config.json that it was saved with."
        )


def _location(options: dict) -> dict:
    return {key: options[key] for key in LOCATION if options.get(key) is not None}


def _variant(file: str, variant: str | None) -> str:
    stem, _, suffix = file.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else file


def _check_index(name: str | os.PathLike, index: Path) -> None:
    """Raise ValueError unless the shards are safetensors beside their index."""
    try:
        files = set(read_json(index)["weight_map"].values())
        wrong = sorted(file for file in files if not file.endswith(".safetensors") or os.path.basename(file) != file or "\\" in file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{index.name} of {name} cannot be read ({reason}). Give a model as it was saved.") from error
    if wrong:
        raise ValueError(f"{index.name} of {name} names {wrong[0]!r}; expected *.safetensors beside it. Give a model as it was saved.")


def _find_pickle(name: str | os.PathLike, location: dict) -> str | None:
    """Return the name of a pickled file of weights, if there is one; on the Hub it is not downloaded."""
    subfolder = location.get("subfolder", "")
    folder = Path(name) / subfolder
    if folder.is_dir():
        return next((file.name for file in sorted(folder.iterdir()) if file.name.removesuffix(".index.json").endswith(PICKLES)), None)
    elsewhere = {key: value for key, value in location.items() if key != "subfolder"}
    files = (os.path.join(subfolder, file) for file in ("pytorch_model.bin", "pytorch_model.bin.index.json"))
    return next((file for file in files if has_file(name, file, **elsewhere)), None)

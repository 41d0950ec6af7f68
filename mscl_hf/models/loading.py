"""Open models by name: a folder, a Hub name, or NAME@REVISION."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import resolve_revision

from ..messages import first_three
from .checks_mscl import ADAPTER, is_adapter
from .configuration_mscl import MsclConfig
from .modeling_mscl import MsclForSemanticSegmentation


def open_model(model_cls: type, name: str, **options) -> Any:
    """Return `model_cls.from_pretrained(name)`, without running code of the model or unpickling files.

    model_cls: a model, a configuration or an Auto class. name: a folder, a Hub name, or NAME@REVISION. Raises ValueError, in one line,
    where there is no such model.
    """
    repo, revision = split_revision(name)
    if not Path(repo).exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):  # a Hub name has this form
        raise ValueError(f"there is no model folder {name}. Give the output folder of a finished run, or a name on the Hub.")
    if Path(repo).is_dir() and not any((Path(repo) / file).is_file() for file in ("config.json", ADAPTER)):
        raise ValueError(f"the folder {name} holds no model (no config.json). Give the output folder of a finished run.")
    if revision is not None and options.get("revision") is None:
        options["revision"] = revision
    if model_cls.__name__.startswith("Auto"):
        options["trust_remote_code"] = False
    if issubclass(model_cls, PreTrainedModel):
        options = {"dtype": torch.float32} | options  # instead of the type that it was saved in
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # transformers warns of new heads
        options["revision"] = resolve_revision(repo, options.get("revision"))  # one commit for all files
        if is_adapter(repo, options):
            raise ValueError(f"{name} holds an adapter and no model. Merge it into its model (PEFT's merge_and_unload).")
        return model_cls.from_pretrained(repo, **options)
    except Exception as error:  # untrusted files can fail anywhere
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        raise ValueError(_cannot_open(repo, error)) from error
    finally:
        logging.set_verbosity(verbosity)


def _cannot_open(name: str, error: Exception) -> str:
    """Return the message for a model that was not opened. name: without its revision."""
    advice = "Give the output folder of a finished run, or a name on the Hub."
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if Path(name).exists():
        return f"cannot open a model at {name!r} ({reason}). {advice}"
    if timm.is_model(name):
        return f"there is no folder {name!r}; this is a backbone of timm. Run mscl-pretrain --backbone {name} and give its output folder."
    if is_offline_mode():
        return f"there is no folder {name!r}, and the Hub was not asked for this name, because HF_HUB_OFFLINE is set. {advice}"
    if isinstance(error.__cause__, LocalEntryNotFoundError):
        return f"there is no folder {name!r}, and the Hub cannot be reached to look for this name. {advice}"
    return f"there is no folder {name!r}, nor such a model on the Hub ({reason}). {advice}"


def open_segmenter(
    name: str, classes: Sequence[str], log: Callable[[str], None] = print, **fields: Any
) -> tuple[MsclForSemanticSegmentation, bool]:
    """Return a segmentation model for these classes, and whether its classifier is new.

    The classifier is new for a pre-trained model, and for other classes or another order of them, which is logged. fields: values for
    fields of its configuration. Raises ValueError as `open_model`.
    """
    names = dict(enumerate(classes))
    network, info = open_model(
        MsclForSemanticSegmentation, name, output_loading_info=True, ignore_mismatched_sizes=True, id2label=names,
        label2id={class_name: index for index, class_name in names.items()}, **fields,
    )  # fmt: skip
    for field, value in fields.items():
        setattr(network.config, field, value)  # `from_pretrained` drops None
    if any(key.startswith("classifier.") for key in info["missing_keys"]):  # pre-trained
        return network, True
    config = open_model(MsclConfig, name)
    trained_classes = [config.id2label[i] for i in range(config.num_labels)]
    if trained_classes == list(classes):
        return network, False
    log(f"new classifier: {name} was trained on the classes {first_three(trained_classes)}; the data has {first_three(classes)}")
    if len(trained_classes) == len(classes):  # otherwise `from_pretrained` has initialized it
        for module in network.modules():
            if getattr(module, "_is_classifier", False):  # the auxiliary head's too
                for parameter in module.parameters():
                    parameter._is_hf_initialized = False  # transformers keeps loaded weights
                network._init_weights(module)
    return network, True


def open_fine_tuned(name: str) -> MsclForSemanticSegmentation:
    """Return the model of --model, in channels-last order; ValueError where it has no trained classifier."""
    no_classifier = ValueError(f"--model is {name}, which has no trained classifier; expected a fine-tuned model. Fine-tune it first.")
    if open_model(MsclConfig, name).architectures == ["MsclForPreTraining"]:
        raise no_classifier
    network, loaded = open_model(MsclForSemanticSegmentation, name, output_loading_info=True)
    if any(key.startswith("classifier.") for key in loaded["missing_keys"]):  # whatever the configuration says that the model is
        raise no_classifier
    return network.to(memory_format=torch.channels_last)


def split_revision(name: str) -> tuple[str, str | None]:
    """Split NAME@REVISION into a name on the Hub and a branch, a tag or a commit; the revision of other names and of folders is None."""
    repo, _, revision = (name, "", "") if Path(name).exists() else name.rpartition("@")
    return (repo, revision) if repo and re.fullmatch(r"[\w./-]+", revision) else (name, None)


def pinned(name: str | None) -> str | None:
    """Return NAME@COMMIT for a model on the Hub, so that all its files are of one recorded commit; other names are returned as they are."""
    if name is None or Path(name).exists():
        return name
    repo, revision = split_revision(name)
    commit = getattr(resolve_revision(repo, revision), "resolved", None)  # where it is None, opening the model reports why
    return f"{repo}@{commit}" if commit else name

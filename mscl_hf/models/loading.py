"""Open models by name: a folder, a Hub name, or NAME@REVISION."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import resolve_revision

from ..messages import first_three
from .checks_mscl import ADAPTER, is_adapter
from .configuration_mscl import MsclConfig
from .modeling_mscl import MsclForSemanticSegmentation


def open_model(kind: type, name: str, **options) -> Any:
    """`kind.from_pretrained`, kind a model, a configuration or an Auto class; ValueError in one sentence when there is none at `name`: a
    folder, a Hub name, or NAME@REVISION. No code of a model is run, and nothing is unpickled."""
    place, revision = split_revision(name)
    if not Path(place).exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):  # nor can it be a Hub name
        raise ValueError(f"there is no model folder {name}; give the output folder of a finished run, or a name on the Hub")
    if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in ("config.json", ADAPTER)):
        raise ValueError(f"the folder {name} holds no model (no config.json); give one in which a run has ended")
    if revision is not None and options.get("revision") is None:
        options["revision"] = revision
    if kind.__name__.startswith("Auto"):
        options["trust_remote_code"] = False
    if issubclass(kind, PreTrainedModel):
        options = {"dtype": torch.float32} | options  # whatever it was saved in
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # a head that is new is no news here
        options["revision"] = resolve_revision(place, options.get("revision"))  # all files are of one commit
        if is_adapter(place, options):
            raise ValueError(f"{name} holds an adapter and no model; merge it into its model (merge_and_unload of PEFT), and give that")
        return kind.from_pretrained(place, **options)
    except Exception as error:  # a stranger's files can fail anywhere
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"cannot open a model at {name!r} ({first}); give a folder of a finished run, or a name on the Hub") from error
    finally:
        logging.set_verbosity(verbosity)


def open_segmenter(
    name: str, classes: Sequence[str], log: Callable[[str], None] = print, **fields: Any
) -> tuple[MsclForSemanticSegmentation, bool]:
    """A segmenter for these classes from the model at `name`, and whether its classifier is new: of a pre-trained model, and of one with
    other classes or with these in another order, which is logged. fields: of its configuration. Raises ValueError as `open_model`."""
    names = dict(enumerate(classes))
    network, loaded = open_model(
        MsclForSemanticSegmentation, name, output_loading_info=True, ignore_mismatched_sizes=True, id2label=names,
        label2id={of: i for i, of in names.items()}, **fields,
    )  # fmt: skip
    for field, value in fields.items():
        setattr(network.config, field, value)  # None too, which `from_pretrained` drops
    if any(key.startswith("classifier.") for key in loaded["missing_keys"]):  # pre-trained
        return network, True
    config = open_model(MsclConfig, name)
    trained_classes = [config.id2label[i] for i in range(config.num_labels)]
    if trained_classes == list(classes):
        return network, False
    log(f"new classifier: {name} was trained on the classes {first_three(trained_classes)}; the data has {first_three(classes)}")
    if len(trained_classes) == len(classes):  # otherwise `from_pretrained` has drawn it
        renew_classifier(network)
    return network, True


def renew_classifier(network: MsclForSemanticSegmentation) -> None:
    """Draw the weights of the classifier, and of the auxiliary head's, anew."""
    for module in network.modules():
        if getattr(module, "_is_classifier", False):
            for parameter in module.parameters():
                parameter._is_hf_initialized = False  # else transformers keeps what was loaded
            network._init_weights(module)


def split_revision(name: str) -> tuple[str, str | None]:
    """A model's name and its revision (a branch, a tag or a commit) where it is NAME@REVISION; a folder is its name alone."""
    place, _, revision = (name, "", "") if Path(name).exists() else name.rpartition("@")
    return (place, revision) if place and re.fullmatch(r"[\w./-]+", revision) else (name, None)


def pinned(name: str | None) -> str | None:
    """NAME@COMMIT for a model on the Hub, so that all its files are of one commit, and a record tells which; else the name as it is."""
    if name is None or Path(name).exists():
        return name
    place, revision = split_revision(name)
    commit = getattr(resolve_revision(place, revision), "resolved", None)  # not there: whoever opens the model says why
    return f"{place}@{commit}" if commit else name

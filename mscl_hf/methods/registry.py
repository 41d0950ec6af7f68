"""The methods by name. To add one: a module in this folder, a row in METHODS, and its name in `PretrainRun.method` (config/__init__.py)."""

from ..config import PretrainConfig
from ..messages import flag
from .base import Method
from .byol import BYOL
from .chaitanya import ChaitanyaGlobal, ChaitanyaGlobalLocal
from .cmc import CMC
from .cp2 import CP2
from .creation import defaults_of
from .densecl import DenseCL
from .distill import Distill
from .instdisc import InstDisc
from .moco import MoCoV1, MoCoV2
from .mscl import MSCL
from .none import ImageNet, NoPreTraining
from .pixpro import PixContrast, PixPro
from .simclr import SimCLR
from .simsiam import SimSiam
from .zhao import ZhaoBatch, ZhaoCross, ZhaoWithin

METHODS: dict[str, type[Method]] = {
    "none": NoPreTraining,
    "imagenet": ImageNet,
    "mscl": MSCL,
    "simclr": SimCLR,
    "instdisc": InstDisc,
    "moco_v1": MoCoV1,
    "moco_v2": MoCoV2,
    "byol": BYOL,
    "simsiam": SimSiam,
    "cmc": CMC,
    "pixpro": PixPro,
    "pixcontrast": PixContrast,
    "densecl": DenseCL,
    "cp2": CP2,
    "zhao_within": ZhaoWithin,
    "zhao_cross": ZhaoCross,
    "zhao_batch": ZhaoBatch,
    "distill": Distill,
    "chaitanya_global": ChaitanyaGlobal,
    "chaitanya_global_local": ChaitanyaGlobalLocal,
}


def stages_of(name: str) -> list[type[Method]]:
    """Return the methods that train the network one after another; the last one has the name."""
    method_cls = METHODS[name]
    return [stage for stage in (method_cls.first_stage, method_cls) if stage]


def check_method_options(config: PretrainConfig) -> None:
    """Raise ValueError for an option of a method or a loss that no stage of --method reads, and for a batch that is too small."""
    name = config.run.method
    stages = stages_of(name)
    readable = [option for stage in stages for option in defaults_of(stage) if option != "images"]
    reads_contrast = any(issubclass(stage, MSCL) for stage in stages)
    given = [*config.method.changed(), *(() if reads_contrast else config.contrast.changed())]
    if unread := [option for option in given if option not in readable]:
        flags = [*map(flag, readable), *["--pixel-temperature and the other options of its loss"] * reads_contrast]
        raise ValueError(f"{flag(unread[0])} is not an option of --method {name}, which reads {', '.join(flags)}. Leave it out.")
    trained = [term for term in config.contrast.terms if term in stages[-1].heads] or stages[-1].heads
    for option, readers in config.contrast.unread(trained).items() if reads_contrast else ():
        reason = f"--method {name} trains with {'+'.join(trained)}, without a {' or '.join(readers)} loss"
        raise ValueError(f"{flag(option)} is {getattr(config.contrast, option)}, and {reason}. Leave it out.")
    for stage in stages:
        stage.check_given(config.method_options())
        least = stage.loss_of(config.contrast).min_batch if issubclass(stage, MSCL) else max(stage.min_batch, 1 + stage.head_statistics)
        if config.training.batch_size < least:
            batch_size, reason = config.training.batch_size, "which contrasts or normalizes over the images of a batch"
            raise ValueError(f"--batch-size is {batch_size}; expected at least {least} with --method {name}, {reason}. Raise it.")


def table() -> list[tuple[str, ...]]:
    """Return the rows of the registry, first the header."""
    rows = [("name", "method", "paper", "year", "views", "reads masks", "trained parts", "state")]
    for name, m in METHODS.items():
        rows.append((name, m.title, m.paper, str(m.year or "-"), m.views if m.trains else "-", m.reads_masks, m.trained_parts, m.state))
    return rows


def option_table() -> list[tuple[str, ...]]:
    """Return the flags that each method reads and their defaults in rows, first the header; auto: derived from the network."""
    rows = [("name", "preset", "batch statistics", "flags (default)")]
    for name, m in METHODS.items():
        flags = [f"{flag(key)} ({'auto' if value is None else value})" for key, value in defaults_of(m).items() if key != "images"]
        if m.trains:
            rows.append((name, m.preset or "-", m.bn_views or "-", ", ".join(flags) or "the options of the loss"))
    return rows


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Return rows as a Markdown table: `python -c "from mscl_hf.methods import markdown, table; print(markdown(table()))"`."""
    lines = ["| " + " | ".join(row) + " |" for row in [rows[0], *((f"`{name}`", *cells) for name, *cells in rows[1:])]]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])

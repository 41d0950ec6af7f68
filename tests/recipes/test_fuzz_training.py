"""Drawn options of a run that goes through to its end: one step, or one sentence and no step."""

import math
import shutil
import typing

import harness
import pytest
from fuzz import AMOUNTS, check_stated, fits, fuzzed
from hypothesis import event
from hypothesis import strategies as st

from mscl_hf.config import HubConfig
from mscl_hf.config.contrast import SUBSETS
from mscl_hf.methods import METHODS
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES
from mscl_hf.training.log import read_log
from mscl_hf.transforms.presets import PRESETS

BASE = {
    "pretrain": (*harness.TINY, *harness.SHORT, "--val-split", "none", "--max-steps", 1),
    "finetune": (*harness.SHORT, "--val-split", "none", "--max-steps", 1, "--probe-batches", 1),
}
# What says where and how long, or asks for more than a moment, a network or a tracker.
LEFT_OUT = {"output_dir", "model", "start_from", "max_steps", "batch_size", "list_methods", "list_losses", "list_semi_supervised",
            "backbone", "pretrained", "torch_compile", "dataloader_num_workers", "report_to", "resume", "gradient_accumulation_steps",
            "warmup_steps", "save_total_limit", "method", "loss", "losses", "image_size", "image_width", "base_size", "two_towers",
            "unlabelled", "backbone_weights",
            "dataset", "data_dir"}  # fmt: skip
WHOLE = st.integers(-1, 40)


def one_option(kind) -> st.SearchStrategy:
    words = str(kind)
    if "list" in words or "int" in words:
        return st.lists(WHOLE, min_size=1, max_size=2) if "list" in words else WHOLE
    return AMOUNTS if "float" in words else fits(kind)


@st.composite
def runs(draw, recipe: str) -> dict:
    """Flags of a run: sizes of its images, its method or loss, and a few other options."""
    kinds = {}
    for each in harness.sections(recipe):
        if each is not HubConfig:
            kinds |= {name: kind for name, kind in typing.get_type_hints(each).items() if name not in LEFT_OUT}
    first = {"method": METHODS, "losses": SUBSETS, "preset": PRESETS} if recipe == "pretrain" else {"loss": FINETUNING_LOSSES}
    found = {name: draw(st.sampled_from(sorted(known))) for name, known in first.items() if draw(st.booleans())}
    names, reads = st.sampled_from(sorted(kinds)), FINETUNING_LOSSES[found["loss"]].options if "loss" in found else ()
    names = st.one_of(names, st.sampled_from(reads)) if reads else names
    found |= {name: draw(one_option(kinds[name])) for name in draw(st.lists(names, max_size=2, unique=True))}
    sides = {"image_size": (16, 32, 64), "image_width": (16, 48), "base_size": (0, 1, 48)}
    return found | {name: draw(st.sampled_from(known)) for name, known in sides.items() if draw(st.integers(0, 3)) == 0}


def as_words(options: dict) -> list[str]:
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return words


def check_run(recipe: str, out, *flags) -> None:
    """It ends with a row of finite numbers, or as wrong input does."""
    shutil.rmtree(out, ignore_errors=True)
    try:
        harness.run(recipe, *BASE[recipe], *flags, "--output-dir", out, pictures=False)
    except SystemExit as ended:
        check_stated(ended.__context__)
        assert ended.code == f"error: {ended.__context__}"
        event("rejected")
    else:
        event("ran")
        rows = read_log(out / "log.jsonl")  # none, of a method that does not train
        assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn_runs") / "model"
    harness.run("pretrain", *BASE["pretrain"], "--output-dir", out, draw_features=lambda *_: None, draw_training=lambda *_: None)
    return out


@fuzzed(cost=15, options=runs("pretrain"))
def test_pretraining_of_drawn_options(tmp_path_factory, options):
    """One step, all of whose numbers are finite, or one sentence."""
    check_run("pretrain", tmp_path_factory.getbasetemp() / "drawn_pretrain", *as_words(options))


@fuzzed(cost=15, options=runs("finetune"))
def test_finetuning_of_drawn_options(tmp_path_factory, model, options):
    """The same of fine-tuning."""
    check_run("finetune", tmp_path_factory.getbasetemp() / "drawn_finetune", "--model", model, *as_words(options))

"""Hostile options and configurations: parsed, or rejected in one sentence; nothing else ever happens."""

import dataclasses
import json
import typing

import harness
import yaml
from fuzz import SCALARS, TEXT, VALUES, fits, fuzzed, parameters, stated
from hypothesis import example
from hypothesis import strategies as st

from mscl_hf import MsclConfig
from mscl_hf.cli import flat, parse, printable

KNOWN_WITH_DATA = ("train_fraction", "labelled_share")  # are checked where the images are counted
RECIPES = tuple(harness.CONFIGS)


def option_types(recipe: str) -> dict:
    """Of every option of a recipe, from the dataclasses themselves."""
    return {name: kind for each in harness.sections(recipe) for name, kind in typing.get_type_hints(each).items()}


def known_values(recipe: str) -> list:
    """The defaults: values that are right somewhere, and wrong elsewhere."""
    defaults = (getattr(f, "default", None) for each in harness.sections(recipe) for f in dataclasses.fields(each))
    return sorted({str(value) for value in defaults if isinstance(value, (str, int, float))})


@st.composite
def some_options(draw, recipe: str):
    """A few options: of their type, of another, of another option, or misspelt."""
    kinds = option_types(recipe)
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=4, unique=True)):
        value = draw(st.one_of(fits(kinds[name]), fits(kinds[name]), VALUES, st.sampled_from(known_values(recipe))))
        found[name[1:] if draw(st.integers(0, 15)) == 7 else name] = value
    return found


def as_flags(options: dict) -> list[str]:
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *(str(v) for v in values)]
    return [word for word in words if not word.startswith(("-h", "--h"))]  # --help ends the process, as it should


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def check_parsed(recipe: str, argv: list[str]) -> list[str]:
    """It is rejected, or gives what the records and trackers of a run, and what the recipe makes of it, can live with: no factor is below
    zero, no number infinite. Returns the rejection."""
    module = harness.load_recipe(recipe)
    with stated() as said:
        config = parse(harness.CONFIGS[recipe], "drawn", argv)
        json.dumps(flat(config), allow_nan=False)
        assert all(isinstance(value, (bool, int, float, str)) for value in printable(config).values())
        if recipe == "pretrain":
            module.check_options(config)
            module.resolved(config)
        factors = {name: value for name, value in flat(config).items() if isinstance(value, float)}
        assert all(value >= 0 for name, value in factors.items() if name not in KNOWN_WITH_DATA), factors
    return said


CASES = st.sampled_from(RECIPES).flatmap(lambda recipe: st.tuples(st.just(recipe), some_options(recipe)))


@example(case=("pretrain", {"global_weight": -1.0}))
@example(case=("pretrain", {"head_lr_scale": -1.0}))
@example(case=("finetune", {"max_scale": float("inf")}))
@example(case=("finetune", {"learning_rate": 0.1, "weight_decay": float("inf")}))
@fuzzed(case=CASES)
def test_flags(case):
    """Any words as flags: options of the right types, or one sentence."""
    check_parsed(case[0], as_flags(case[1]))


@example(recipe="pretrain", words=["\n"])
@example(recipe="pretrain", words=[""])
@fuzzed(recipe=st.sampled_from(RECIPES), words=st.lists(TEXT, max_size=4))
def test_words(recipe, words):
    """Words that are no flags at all."""
    check_parsed(recipe, [word for word in words if not word.startswith(("-h", "--h"))])


@example(case=("pretrain", {"decoder_rates": []}), extra={})
@example(case=("finetune", {"classes": [None]}), extra={})
@example(case=("finetune", {"classes": [["a"]]}), extra={})
@example(case=("evaluate_model", {"split": b"test"}), extra={})
@fuzzed(case=CASES, extra=st.dictionaries(SCALARS, SCALARS, max_size=1))
def test_yaml_values(tmp_path_factory, case, extra):
    """Any values under the options' names in a file; what is no number, truth or text, in a list too, is rejected."""
    path = tmp_path_factory.getbasetemp() / "drawn.yaml"
    path.write_text(yaml.safe_dump(case[1] | extra, allow_unicode=True), encoding="utf-8")
    said = check_parsed(case[0], ["--config", str(path)])
    parts = [part for value in case[1].values() for part in (value if isinstance(value, list) else [value])]
    in_lists = [part for value in case[1].values() if isinstance(value, list) for part in value]
    assert said or not any(isinstance(part, (dict, list, bytes)) for part in parts) and None not in in_lists


@example(recipe="pretrain", content=b"\x80")
@example(recipe="pretrain", content=b"seed: 2024-99-99")
@example(recipe="pretrain", content=b"seed: !!bool x")
@example(recipe="pretrain", content=b"seed: !!timestamp x")
@example(recipe="pretrain", content=b"[" * 3000)
@fuzzed(recipe=st.sampled_from(RECIPES), content=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(as_bytes)))
def test_yaml_bytes(tmp_path_factory, recipe, content):
    """Any bytes as the file."""
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    check_parsed(recipe, [f"--config={path}"])


@st.composite
def some_fields(draw):
    """Fields of a configuration, of their type or not."""
    kinds = {**parameters(MsclConfig.__init__), "num_labels": int, "id2label": dict, "label2id": dict, "nobody": str}
    labels = st.dictionaries(st.one_of(st.integers(-1, 3), TEXT), SCALARS, max_size=3)
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=4, unique=True)):
        kind = fits(kinds[name]) if "dict" not in str(kinds[name]) else labels
        found[name] = draw(st.one_of(kind, kind, VALUES))
    return found


@example(fields={"backbone_kwargs": 5})
@example(fields={"backbone_kwargs": {0: None, "": None}})
@example(fields={"heads": 7})
@example(fields={"image_size": 0})
@example(fields={"stage_names": []})
@example(fields={"id2label": []})
@example(fields={"num_labels": 10**30})
@example(fields={"num_labels": None})
@fuzzed(fields=some_fields())
def test_model_configuration(fields):
    """A configuration of any fields is rejected, or written to JSON and read back the same."""
    with stated(also="transformers"):
        config = MsclConfig(**fields)
        again = MsclConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
        assert again.to_json_string() == config.to_json_string()

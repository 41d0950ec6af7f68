"""Command lines: flags, YAML files, near names; and every option of the method and its views trains."""

import dataclasses
import math
import re
from dataclasses import dataclass, field

import harness
import pytest
from test_recipes import write_folder

from mscl_hf.cli import parse_sections, printable
from mscl_hf.config import DataConfig, MethodConfig, TrainingConfig, ViewConfig, parse_losses
from mscl_hf.config.contrast import SUBSETS
from mscl_hf.losses import MultiScaleLoss
from mscl_hf.training.log import read_log


@dataclass(frozen=True)
class Sample:
    number: int = field(default=3)
    share: float = field(default=0.5)
    words: list[str] = field(default_factory=list)
    name: str | None = field(default=None)
    loud: bool = field(default=False)
    quiet: bool = field(default=True)


def parsed(*argv, yaml: str | None = None, tmp_path=None) -> Sample:
    argv = list(map(str, argv))
    if yaml is not None:
        (tmp_path / "o.yaml").write_text(yaml)
        argv += ["--config", str(tmp_path / "o.yaml")]
    return parse_sections([Sample], "sample", argv)[0]


def rejection(*argv, **where) -> str:
    with pytest.raises(ValueError) as raised:
        parsed(*argv, **where)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_flags_and_defaults():
    """Dashes or underscores, a flag for each truth value, lists by repetition of words."""
    assert parsed() == Sample()
    given = parsed("--number", 4, "--share=1e-3", "--words", "a", "b", "--loud", "--no-quiet")
    assert given == Sample(4, 1e-3, ["a", "b"], None, True, False)


def test_yaml_means_the_same_as_flags_and_flags_win(tmp_path):
    """Every kind of value, exponents without a point, one word for a list; a flag given beside the file is the last word."""
    text = "number: 4\nshare: 1e-3\nwords: [a, b]\nloud: true\nquiet: false\nname: null\n"
    assert parsed(yaml=text, tmp_path=tmp_path) == Sample(4, 1e-3, ["a", "b"], None, True, False)
    assert parsed("--number", 9, "--words", "c", yaml=text, tmp_path=tmp_path) == Sample(9, 1e-3, ["c"], None, True, False)
    assert parsed(yaml="words: alone", tmp_path=tmp_path).words == ["alone"]
    assert parsed(yaml="", tmp_path=tmp_path) == Sample()


def test_home_in_flags_and_yaml(tmp_path, monkeypatch):
    """~ is the home folder in every text option: in a file, behind '=', in lists, and for --config itself; elsewhere in a text it stays."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "o.yaml").write_text("name: ~/data\nwords: [~/a, b~]\n")
    assert parsed("--config", "~/o.yaml") == Sample(name=f"{tmp_path}/data", words=[f"{tmp_path}/a", "b~"])
    assert parsed("--name=~", "--words", "~/x").name == str(tmp_path)
    assert parsed("--name", "a/~/b").name == "a/~/b"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_yaml_with_a_byte_order_mark(tmp_path, encoding):
    """Files as editors of Windows save them."""
    (tmp_path / "o.yaml").write_text("name: Straße\n", encoding=encoding)
    assert parsed("--config", tmp_path / "o.yaml").name == "Straße"


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("numbre: 4", "numbre is not an option of this command. Did you mean number?"),
        ("number: many", "number is 'many'; expected a whole number"),
        ("number: true", "number is True; expected a whole number"),
        ("number: [1, 2]", "expected a whole number"),
        ("number: null", "expected a whole number"),
        ("loud: perhaps", "expected true or false"),
        ("name: no", "name is False; expected text"),
        ("name: no", "Quote yes, no, on, off, true, false and null, which are not text in YAML: 'no'"),
        ("words: [a, yes]", "words is ['a', True]; expected a list, each text. Quote yes, no"),
        ("words: [a, null]", "words is ['a', None]; expected a list, each text. Quote yes, no"),
        ("words: {1: car, 0: road}", "expected a list, each text. Write a list: [road, car]"),
        ("- number", "holds a list; expected 'option: value' lines"),
        ("number: [1", "is not valid YAML"),
    ],
)
def test_bad_yaml_is_named(tmp_path, yaml, says):
    """File, option and value stand in one sentence."""
    message = rejection(yaml=yaml, tmp_path=tmp_path)
    assert says in message and "o.yaml" in message


def test_a_label_map_may_be_a_mapping(tmp_path):
    """{255: 1, 7: 255} in a file is the text 255:1,7:255; other values are named."""
    file = tmp_path / "o.yaml"
    for text in ("label_map: {255: 1, 7: 255}", "label_map:\n  255: 1\n  7: 255", "label_map: 255:1,7:255", "label-map: '255:1,7:255'"):
        file.write_text(text)
        assert parse_sections([DataConfig], "data", ["--config", str(file)])[0].label_map == "255:1,7:255"
    file.write_text("label_map: [255, 1]")
    with pytest.raises(ValueError, match="label_map is .255, 1.; expected text"):
        parse_sections([DataConfig], "data", ["--config", str(file)])


def test_aliases_do_not_fill_the_message(tmp_path):
    """A few lines of YAML can stand for a million values; the sentence shows the first of them."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x]", *(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 6))]
    message = rejection(yaml=f"number: [{', '.join(lists)}]", tmp_path=tmp_path)
    assert "number is [['x', 'x'" in message and len(message) < 1000


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--numbr", 3), "--numbr is not an option of this command. Did you mean --number?"),
        (("stray",), "stray is not an option"),
        (("--number", "many"), "--number is 'many'; expected a whole number"),
        (("--number",), "expected one argument"),
        (("--config", "/nowhere.yaml"), "--config is /nowhere.yaml; expected the path"),
    ],
)
def test_bad_flags_are_named(argv, says):
    """No page of usage: one sentence, and where to find the rest."""
    assert says in rejection(*argv)


def test_abbreviations_are_not_guessed():
    """--num is not --number: a later option may share its start."""
    assert "--num" in rejection("--num", 3)


def test_printable_is_what_trackers_take():
    """Numbers, truth values, text; everything else as text."""
    assert printable(Sample(words=["a"])) == {"number": 3, "share": 0.5, "words": "['a']", "name": "None", "loud": False, "quiet": True}


# -- every option trains -----------------------------------------------------------------------------------------------------

LOSS_VALUES = {
    "losses": SUBSETS,
    "global_weight": (0.5,), "local_weight": (0.0,), "pixel_weight": (2.0,), "global_temperature": (0.5,),
    "local_temperature": (0.5,), "pixel_temperature": (0.5,),
    "negatives": ("ntxent",),
    "queue_size": (6,),
    "local_scope": ("image", "others"),
    "pixel_scope": ("cross", "within"),
    "pixel_denominator": ("neg",),
    "pixel_sample": ("random", "class"),
    "pixel_count": (3,),
    "label_downsampling": ("majority", "pure"),
    "pixel_reduction": ("in",),
    "anchor_weight": ("class",),
    "exclude_classes": ("0 1",),
    "denominator": ("literal",),
    "symmetric": ("true",),
    "loss_precision": ("bf16",),
}  # fmt: skip
VIEW_VALUES = {
    "geometry": ("shared", "none"), "min_scale": (0.9,), "max_scale": (1.1,), "min_overlap": (0.6,), "color_strength": (0.0,),
    "blur": (0.0, 1.0),
    "augment_both": ("true",),
}  # fmt: skip
NETWORK_VALUES = {
    "attach": ("backbone", "decoder"), "bn_views": ("separate",), "local_grid": (1,), "local_layers": (2,), "global_dim": (8,),
    "local_dim": (8,), "pixel_dim": (8,), "pixel_layers": (2,), "pixel_bn": ("false",), "pixel_grid": (1,), "decoder": ("fcn", "mla"),
    "output_stride": (8, 32), "base_size": (0, 64), "image_width": (48,), "two_towers": ("true",),
}  # fmt: skip
CASES = [(option, value) for values in (LOSS_VALUES, VIEW_VALUES, NETWORK_VALUES) for option, given in values.items() for value in given]
# Of the other methods: one that reads the option, a value beside the default, and what makes it matter.
METHOD_VALUES = {
    "temperature": ("simclr", 0.5, ()), "embed_dim": ("byol", 8, ()), "hidden_dim": ("moco_v2", 8, ()), "head_layers": ("simclr", 3, ()),
    "ema_momentum": ("byol", 0.5, ()), "bank_loss": ("instdisc", "nce", ()), "nce_draws": ("instdisc", 3, ("--bank-loss", "nce")),
    "proximal": ("instdisc", 30, ()), "dense_weight": ("densecl", 0.9, ()), "dense_warmup": ("densecl", 1.0, ()),
    "dense_temperature": ("cp2", 0.2, ()), "dense_axis": ("cp2", "query", ()), "grid": ("densecl", 1, ()),
    "ppm_gamma": ("pixpro", 1.0, ()), "ppm_layers": ("pixpro", 2, ()), "match_radius": ("pixpro", 1.5, ()),
    "match_empty": ("pixcontrast", "zero", ("--match-radius", 0.4)), "instance_weight": ("pixpro", 1.0, ()),
    "variant": ("zhao_within", "released", ()), "partitions": ("chaitanya_global", 2, ("--dataset", "folder", "--variant", "GD")),
    "token_loss": ("distill", "relations", ()),
    "preset": ("byol", "simclr", ()), "min_area": ("simclr", 0.9, ()),
}  # fmt: skip
EXTRA = {"pixel_sample": ("--pixel-count", 2), "pixel_count": ("--pixel-sample", "random"), "pixel_bn": ("--pixel-layers", 2)}


def test_every_option_is_tried():
    """A new option of the loss or the views must be added above."""
    assert {f.name for f in dataclasses.fields(MultiScaleLoss)} == set(LOSS_VALUES)
    assert {f.name for f in dataclasses.fields(ViewConfig)} == {*VIEW_VALUES, "preset", "min_area"}
    of_teacher = {"teacher", "teacher_weights", "teacher_pretrained"}  # tests/methods/test_distill.py
    assert {f.name for f in dataclasses.fields(MethodConfig)} | {"preset", "min_area"} == set(METHOD_VALUES) | of_teacher


@pytest.fixture(scope="module")
def default_log(tmp_path_factory):
    out = tmp_path_factory.mktemp("default")
    return one_step(out)


def one_step(out, *flags) -> list[dict]:
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--max-steps", 2, "--val-split", "none", "--output-dir", out / "run", *flags,
                pictures=False)  # fmt: skip
    return [row for row in read_log(out / "run" / "log.jsonl") if "loss" in row]


@pytest.mark.parametrize(("option", "value"), CASES)
def test_option_trains_and_has_an_effect(tmp_path, default_log, option, value):
    """Two steps by flag: finite losses, the terms that were asked for and no other; and not the numbers of the default."""
    flags = (*EXTRA.get(option, ()), f"--{option.replace('_', '-')}", *str(value).split(" "))
    rows = one_step(tmp_path, *flags)
    assert all(math.isfinite(number) for row in rows for number in row.values())
    heads = parse_losses(value) if option == "losses" else ("global", "local", "pixel")
    assert {name for name in rows[0] if name.startswith("loss_")} == {f"loss_{head}" for head in heads}
    assert ("floor_pixel" in rows[0]) == ("excess_pixel" in rows[0]) == ("pixel" in heads)
    if (option, value) != ("losses", "global+local+pixel"):
        assert [row["loss"] for row in rows] != [row["loss"] for row in default_log]


@pytest.mark.parametrize("option", METHOD_VALUES)
def test_method_option_has_an_effect(tmp_path, option):
    """By flag, on a method that reads it: three steps are finite, and not those without the flag."""
    method, value, extra = METHOD_VALUES[option]
    if "folder" in extra:
        write_folder(tmp_path / "data", splits=("train",))
        for number, path in enumerate(sorted((tmp_path / "data" / "images" / "train").iterdir())):
            for kind in ("images", "masks"):
                place = tmp_path / "data" / kind / "train" / f"volume{number % 2}"
                place.mkdir(exist_ok=True)
                path = tmp_path / "data" / kind / "train" / path.with_suffix(".png").name
                path.rename(place / path.name)
        extra = (*extra, "--data-dir", tmp_path / "data", "--batch-size", 4, "--train-count", 4)
    logs = []
    for name, flags in (("without", ()), ("with", (f"--{option.replace('_', '-')}", value))):
        rows = one_step(tmp_path / name, "--max-steps", 3, "--method", method, *harness.needed_flags(method), *extra, *flags)
        assert all(math.isfinite(number) for row in rows for number in row.values())
        logs.append([(row["loss"], row["grad_norm"]) for row in rows])
    assert logs[0] != logs[1]


OPTIONS = {
    name: [option.name for options in harness.sections(name) for option in dataclasses.fields(options)]
    for name in harness.CONFIGS
}
HABITS = """
pretrain | --max-epochs 10 | --epochs
finetune | --num-epochs=10 | --epochs
finetune | --device cuda | CUDA_VISIBLE_DEVICES
evaluate_model | --gpus 2 | --num_processes
pretrain | --lr0 1 | --learning-rate
pretrain | --base_lr 1 | --learning-rate
pretrain | --amp | --mixed-precision bf16
pretrain | --workers 8 | --dataloader-num-workers
finetune | --data DIR | --data-dir
pretrain | --weights FILE | --backbone-weights
evaluate_model | --weights DIR | --model
finetune | --img-size 512 | --image-size
evaluate_model | --img-size 512 | --base-size
pretrain | --model resnet50 | --backbone
finetune | --arch resnet50 | --model
pretrain | --mixed-precision half | bf16, fp16
evaluate_model | --mixed-precision half | bf16, fp16
pretrain | --fp16 | --mixed-precision bf16, or fp16
pretrain | --dataset roboflow | --dataset coco
finetune | --resume-from DIR | --resume
pretrain | --output DIR | --output-dir
pretrain | --palette FILE | --class-colors
finetune | --val-ratio 0.2 | --val-fraction
evaluate_model | --ann-file FILE | --annotations
finetune | --ignore-index 0 | --label-map
"""


@pytest.mark.parametrize(("recipe", "words", "remedy"), [line.split(" | ") for line in HABITS.strip().splitlines()])
def test_options_of_other_libraries_get_a_remedy(tmp_path, recipe, words, remedy):
    """What to use instead, of the options that this command has, in place of options that are spelled alike."""
    message = harness.rejected(recipe, *words.split(), "--output-dir", tmp_path / "out")
    assert remedy in message and "Did you mean" not in message.replace("Did you mean bf16?", "")
    for option in re.findall(r"(?<!launch )--[a-z][a-z-]+(?![a-z_-])", message.replace(words.split()[0].split("=")[0], "")):
        assert option.removeprefix("--").replace("-", "_") in {"help", *OPTIONS[recipe]}, option


@pytest.mark.parametrize(("recipe", "word", "owners"), [
    ("finetune", "--method", "mscl-pretrain"), ("pretrain", "--loss=ce", "mscl-finetune"),
    ("finetune", "--flip", "mscl-evaluate and mscl-predict"),
    ("evaluate_model", "--max-steps", "mscl-pretrain and mscl-finetune"), ("finetune", "--start_from", ""),
])  # fmt: skip
def test_options_of_other_commands_name_the_command(tmp_path, recipe, word, owners):
    """No similar name is suggested. A remedy that is known for the command comes first."""
    message = harness.rejected(recipe, word, "--output-dir", tmp_path / "out")
    assert (f"It is an option of {owners}." in message) if owners else "--model" in message


@pytest.mark.parametrize("words", ["--batch-size 8", "--dataloader-num-workers 2"])
def test_options_of_training_in_an_evaluation(tmp_path, words):
    """Evaluation has neither, and says so."""
    assert "Images are evaluated one at a time" in harness.rejected("evaluate_model", *words.split(), "--output-dir", tmp_path / "out")


def test_habits_in_yaml_get_a_remedy(tmp_path):
    """The same in a configuration file."""
    (tmp_path / "run.yaml").write_text("num_epochs: 10\n")
    rejection = harness.rejected("pretrain", "--config", tmp_path / "run.yaml")
    assert "num_epochs is not an option of this command. Give --epochs, or --max-steps in optimizer steps" in rejection


def test_batch_size_is_written_either_way():
    """With underscores too."""
    assert parse_sections([TrainingConfig], "", ["--batch_size", "8"])[0].batch_size == 8

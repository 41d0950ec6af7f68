"""The model card: written by the recipes, consistent with their records, valid by the Hub's rules, without local paths."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
from harness import SHORT, TINY, UNCHECKED, run
from hub_metadata import card_problems
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, pipeline

from mscl_hf import MsclForSemanticSegmentation
from mscl_hf.cli import flat, parse
from mscl_hf.config import DataConfig, PretrainConfig
from mscl_hf.data.synthetic import CLASSES
from mscl_hf.records.redact import public
from mscl_hf.sharing.model_card import cell, copy_pictures_and_processor, describe_options, method_facts, model_card
from mscl_hf.sharing.model_folder import typical_size
from mscl_hf.sharing.provenance import _hub_name, command_line, data_name, read_provenance, with_evaluation
from mscl_hf.sharing.upload import NAME_PLACEHOLDER, model_files


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folder with a pre-training run and a fine-tuning run that starts from it, one step each."""
    folder = tmp_path_factory.mktemp("chain")
    run("pretrain", "--output-dir", folder / "pretrained", "--max-steps", 1, "--losses", "g+p", "--pixel-weight", 0.5,
        "--pixel-temperature", 0.2, "--val-split", "none", *TINY, *SHORT)  # fmt: skip
    run("finetune", "--model", folder / "pretrained", "--output-dir", folder / "tuned", "--max-steps", 1, "--loss", "ohem",
        "--license", "cc-by-4.0", *SHORT)  # fmt: skip
    return folder


def section(card: str, title: str) -> str:
    return re.search(rf"\n##+ (?:\d+\. )?{title}\n(.*?)(?=\n##+ |\Z)", card, re.S).group(1)


def rows(text: str) -> dict[str, list[str]]:
    """Return {first cell: other cells} of the tables in a text."""
    cells = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {first: others for first, *others in cells}


@pytest.mark.parametrize("stage", ["pretrained", "tuned"])
def test_metadata_is_valid_and_complete(chain, stage):
    """The Hub finds no error and no warning; library, task, tags and license are as configured."""
    text = (chain / stage / "README.md").read_text()
    assert card_problems(text) == ([], [])
    data = ModelCard(text).data
    assert data.library_name == "transformers" and {"mscl_hf", "timm"} <= set(data.tags)
    expected = {"pretrained": (None, None), "tuned": ("image-segmentation", "cc-by-4.0")}[stage]
    assert (data.pipeline_tag, data.license) == expected


def test_scores_are_those_of_the_evaluation(chain):
    """The metadata and the table of classes hold the scores of results.json; classes that do not occur have none."""
    text, results = (chain / "tuned" / "README.md").read_text(), json.loads((chain / "tuned" / "results.json").read_text())
    scores = {result.metric_type: result for result in ModelCard(text).data.eval_results}
    assert {key: result.metric_value for key, result in scores.items()} == {
        key: round(results[key], 4) for key in ("mean_iou", "mean_accuracy", "overall_accuracy")
    }
    assert {(r.task_type, r.dataset_name, r.dataset_split) for r in scores.values()} == {("image-segmentation", "synthetic", "val")}
    table = rows(section(text, "Evaluation"))
    for name in CLASSES:
        values = (results[key][name] for key in ("per_class_iou", "per_class_accuracy"))
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        assert table[name] == shown


def test_card_lists_both_stages(chain):
    """Method, losses and weights, data, budget and versions are listed; options of unused losses are not."""
    text = (chain / "tuned" / "README.md").read_text()
    before, after = (rows(section(text, stage)) for stage in ("Pre-training", "Fine-tuning"))
    assert before["losses"] == ["0.1 x global + 0.5 x pixel"] and r"pixel\_temperature 0.2" in before["options"][0]
    assert r"local\_weight" not in before["options"][0] and r"local\_temperature" not in before["options"][0]
    count = SHORT[SHORT.index("--train-count") + 1]
    assert before["images with labels"] == after["images with labels"] == [str(count)]
    assert before["started from"] == ["random weights"] and after["started from"] == ["pretrained"]
    assert after["loss"] == ["ohem"] and after["budget"][0].startswith("1 steps of")
    for package in ("mscl_hf", "Python", "torch", "timm", "transformers"):
        assert re.search(rf"{re.escape(cell(package))} \d", section(text, "Versions"))
    assert "cc-by-4.0" in section(text, "License and limitations") and "No license was stated" not in text
    assert "No license was stated" in (chain / "pretrained" / "README.md").read_text()


def test_no_local_path_is_published(chain):
    """Neither the card nor the provenance holds a local path; the card holds the command of the run."""
    for file in ("README.md", "provenance.json"):
        text = (chain / "tuned" / file).read_text()
        assert str(chain) not in text and chain.parent.name not in text
    (command,) = re.findall("^mscl-finetune --model pretrained .*$", (chain / "tuned" / "README.md").read_text(), re.MULTILINE)
    assert "--loss ohem" in command


HIDDEN = {
    "/data/secret/CamVid": "CamVid", "~/masks": "masks", "../up/there": "there", "runs/../../home/me": "me", "./x/../../home/me/d": "d",
    r"C:\Users\me\data": "data", "file:///home/me/d": "d", "a,/home/me/b": "a,b", "/": "DIR",
    "file:/home/me/d": "d", "sftp://alice:hunter22@store.org": "store.org", "s3://KEY:SECRET@bucket": "bucket",
    "https://account.org/train?sv=1&sig=signed": "train",
}  # fmt: skip


@pytest.mark.parametrize("path", HIDDEN)
def test_local_folders_are_shortened_to_their_names(path):
    """Only the last name of a path outside the working folder is published, however the path is written."""
    assert public(path) == HIDDEN[path]


def test_other_values_are_published_unchanged():
    """Hub names, folders below the working folder and values are published unchanged; tokens are not."""
    for text in ("runs/here", "org/name", "g+l", "0.1", "a,b", "resnet18.a1_in1k"):
        assert public(text) == text
    assert "abcdefghijklmnop" not in public("hf_abcdefghijklmnop")


def test_command_repeats_the_run(tmp_path, monkeypatch):
    """Parsed again, the command gives the same options, from flags and from a file, except output folder, --resume and push."""
    (tmp_path / "my.yaml").write_text("losses: g+p\nmax-steps: 7\nexclude-classes: [1, 2]\npixel-bn: false\ngradient-checkpointing: true\n")
    monkeypatch.setattr("sys.argv", ["/home/me/recipes/pretrain.py"])
    arguments = ["--config", str(tmp_path / "my.yaml"), "--pixel-temperature", "0.3", "--resume"]
    arguments += ["--push-to-hub", "org/name", "--output-dir", "runs/x"]
    config = parse(PretrainConfig, "", arguments)
    words = command_line(config).split()
    assert words[0] == "mscl-pretrain" and not {"--resume", "--config", "--push-to-hub"} & set(words)
    again, expected = flat(parse(PretrainConfig, "", words[1:])), flat(config)
    assert {name for name in expected if again[name] != expected[name]} == {"output_dir", "resume", "push_to_hub"}
    assert command_line(config, 2).startswith("torchrun --nproc_per_node 2 recipes/")
    assert command_line(config, 2, gpu=True).startswith("accelerate launch --num_processes 2 recipes/")


def test_its_first_example_runs(chain, tmp_path, monkeypatch, capsys):
    """The first code example, with the name filled in, gives masks of the image's size and their classes."""
    Image.new("RGB", (90, 70), "red").save(tmp_path / "image.jpg")
    text = (chain / "tuned" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    assert NAME_PLACEHOLDER in example
    exec(example.replace(NAME_PLACEHOLDER, str(chain / "tuned")), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.split()[0] in CLASSES and line.endswith("(90, 70)") for line in lines)


def test_pictures_of_the_folder_are_shown(chain):
    """The card shows exactly the pictures of its folder."""
    for stage in ("pretrained", "tuned"):
        shown = set(re.findall(r"\]\((\w+\.png)\)", (chain / stage / "README.md").read_text()))
        assert shown == {path.name for path in (chain / stage).glob("*.png")} and shown


def test_evaluation_on_another_split_is_added_to_the_pushed_card(chain, tmp_path):
    """With --push-to-hub the model is published with both evaluations, the same weights and license; without, only results are written."""
    pushed = []
    patches = UNCHECKED | {"push_result": lambda out, hub: pushed.append((out, hub.push_to_hub))}
    flags = ("evaluate_model", "--model", chain / "tuned", "--pictures", 1)
    run(*flags, "--output-dir", tmp_path / "plain", **patches)
    assert not (tmp_path / "plain" / "model.safetensors").exists()
    run(*flags, "--output-dir", tmp_path / "out", "--push-to-hub", "org/name", **patches)
    assert [name for _, name in pushed] == [None, "org/name"] and pushed[1][0] == tmp_path / "out"
    text = (tmp_path / "out" / "README.md").read_text()
    assert card_problems(text) == ([], [])
    assert [evaluation["split"] for evaluation in read_provenance(str(tmp_path / "out"))["evaluations"]] == ["val", "test"]
    data = ModelCard(text).data
    assert {result.dataset_split for result in data.eval_results} == {"val", "test"} and data.license == "cc-by-4.0"
    for name in ("model.safetensors", "training.png", "preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (chain / "tuned" / name).read_bytes()


def test_a_copied_processor_is_updated(tmp_path):
    """The processor of an earlier version, copied for a push with new scores, gets do_convert_rgb."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    copy_pictures_and_processor(str(tmp_path / "old"), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())["do_convert_rgb"] is True


def test_a_link_in_an_untrusted_model_is_not_published(chain, tmp_path, capsys):
    """Pictures of the model's folder are published with new scores, but not a link to a file outside it, which is logged."""
    pushed = []
    patches = UNCHECKED | {"push_result": lambda out, hub: pushed.extend(model_files(out))}
    untrusted = shutil.copytree(chain / "tuned", tmp_path / "untrusted")
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (untrusted / "training.png").unlink()
    (untrusted / "training.png").symlink_to(tmp_path / "id_rsa")
    flags = ("--model", untrusted, "--output-dir", tmp_path / "out", "--pictures", 1, "--push-to-hub", "org/name")
    run("evaluate_model", *flags, **patches)
    assert "training.png of" in capsys.readouterr().out
    assert "model.safetensors" in pushed and "training.png" not in pushed and not (tmp_path / "out" / "training.png").exists()


def test_one_evaluation_per_split(chain):
    """A second evaluation on a split replaces the first."""
    record = read_provenance(str(chain / "tuned"))
    options = DataConfig()
    results = json.loads((chain / "tuned" / "results.json").read_text())
    again = with_evaluation(record, results | {"mean_iou": 0.125}, options)
    assert [evaluation["mean_iou"] for evaluation in again["evaluations"]] == [0.125] and record["evaluations"][0]["mean_iou"] != 0.125
    assert len(with_evaluation(record, results | {"split": "test"}, options)["evaluations"]) == 2
    assert len(with_evaluation(record, results, replace(options, dataset="camvid", data_dir="x"))["evaluations"]) == 2


def test_new_weights_drop_old_scores(chain, tmp_path):
    """Fine-tuned again, a model keeps the history of its stages, but not the scores and the license of the earlier weights."""
    run("finetune", "--model", chain / "tuned", "--output-dir", tmp_path, "--max-steps", 1, "--val-split", "none", *SHORT)
    record = read_provenance(str(tmp_path))
    assert [stage["stage"] for stage in record["stages"]] == ["Pre-training", "Fine-tuning", "Fine-tuning"]
    assert not record["evaluations"] and record["license"] is None
    assert "Its accuracy was not measured." in (tmp_path / "README.md").read_text()


def test_a_card_edited_by_hand_is_kept(chain, tmp_path, capsys):
    """Resuming a finished run writes its card anew, unless it was edited."""
    flags = ("finetune", "--model", chain / "pretrained", "--output-dir", tmp_path, "--max-steps", 1, "--val-split", "none", *SHORT)
    run(*flags)
    written = (tmp_path / "README.md").read_text()
    run(*flags, "--resume", "--license", "mit")
    assert "edited by hand" not in capsys.readouterr().out and "license: mit" in (tmp_path / "README.md").read_text() != written
    (tmp_path / "README.md").write_text("# Mine, é\n", encoding="utf-8")
    run(*flags, "--resume")
    assert "edited by hand" in capsys.readouterr().out and (tmp_path / "README.md").read_text(encoding="utf-8") == "# Mine, é\n"


BROKEN = {
    "empty": "", "no JSON": "no", "a list": "[]", "no entries": "{}", "half a stage": '{"stages": [{"stage": "x"}], "evaluations": []}',
    "half an evaluation": '{"stages": [], "evaluations": [{"dataset": "x"}]}',
    "nested too deep": "[" * 100_000,
}  # fmt: skip
# Changes that make a valid record invalid.
INVALID = {
    "stage is a number": lambda record: record["stages"][0].update(stage=3),
    "no versions": lambda record: record["stages"][0].pop("versions"),
    "versions in a list": lambda record: record["stages"][0].update(versions=["1"]),
    "no command": lambda record: record["stages"][0].pop("command"),
    "facts are text": lambda record: record["stages"][0].update(facts="text"),
    "no budget": lambda record: record["stages"][0]["facts"].pop("budget"),
    "base model in a list": lambda record: record["stages"][0].update(base_model=["a"]),
    "half an inference": lambda record: record["evaluations"][0]["inference"].pop("scales"),
    "a score in words": lambda record: record["evaluations"][0].update(mean_iou="much"),
    "IoU in words": lambda record: record["evaluations"][0]["per_class_iou"].update(sky="much"),
    "no accuracy of a class": lambda record: record["evaluations"][0]["per_class_accuracy"].pop("sky"),
    "a number for the title": lambda record: record.update(title=3),
    "licenses in a list": lambda record: record.update(license=["mit"]),
}


@pytest.mark.parametrize("what", BROKEN | INVALID)
def test_an_invalid_record_is_left_out(chain, tmp_path, what, capsys):
    """A record that cannot be read, or from which no card can be written, is left out as a whole, which is logged."""
    record = json.loads((chain / "tuned" / "provenance.json").read_text())
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    assert read_provenance(str(tmp_path)) == record and not capsys.readouterr().out
    INVALID.get(what, lambda record: None)(record)
    (tmp_path / "provenance.json").write_text(BROKEN.get(what, json.dumps(record)))
    record = read_provenance(str(tmp_path))
    assert record["stages"] == record["evaluations"] == [] and "cannot be read" in capsys.readouterr().out


def test_title_and_license_are_optional(tmp_path):
    """Older records have neither; both are then None."""
    (tmp_path / "provenance.json").write_text('{"stages": [], "evaluations": []}')
    assert read_provenance(str(tmp_path)) == {"title": None, "license": None, "stages": [], "evaluations": []}


# provenance.json as written before options were renamed and classes were counted.
EARLIER = {
    "title": "resnet18.a1_in1k, fine-tuned on camvid", "license": "mit",
    "stages": [{
        "stage": "Pre-training",
        "facts": {"method": "multi-scale contrast", "losses": "1 x g + 0.5 x p", "options": "tau_g 0.1, tau_p 0.07, queue 64",
                  "data": "camvid, train", "images with labels": 37,
                  "budget": "300 steps of 16 images, 130 passes", "optimizer": "sgd, lr 0.05, poly",
                  "precision": "fp32", "seed": 0, "started from": "random weights"},
        "data_set": None, "base_model": None, "command": "accelerate launch recipes/pretrain.py --lr 0.05 --tau-p 0.07",
        "versions": {"mscl_hf": "0.1.0", "torch": "2.10"},
    }],
    "evaluations": [{
        "dataset": "camvid", "split": "val", "num_images": 101, "mean_iou": 0.5, "mean_accuracy": 0.6, "overall_accuracy": 0.9,
        "per_class_iou": {"sky": 0.5, "car": None}, "per_class_accuracy": {"sky": 0.6, "car": None}, "score_classes": None,
        "inference": {"mode": "whole", "window": 512, "base_size": 256, "flip": False, "scales": [1.0]}, "precision": "fp32",
    }],
}  # fmt: skip


def test_record_of_an_earlier_version(chain, tmp_path, capsys):
    """Old facts, commands and scores are read without a message, and shown as they were written."""
    (tmp_path / "provenance.json").write_text(json.dumps(EARLIER))
    record = read_provenance(str(tmp_path))
    assert record == EARLIER and not capsys.readouterr().out
    text = str(model_card(tmp_path, MsclForSemanticSegmentation.from_pretrained(chain / "tuned"), record))
    assert card_problems(text) == ([], []) and "--lr 0.05 --tau-p 0.07" in text
    assert rows(section(text, "Pre-training"))["losses"] == ["1 x g + 0.5 x p"]
    assert rows(section(text, "Evaluation"))["sky"] == ["50.0", "60.0"]


def test_names_of_data_sets(tmp_path, monkeypatch):
    """A folder is named by its last name; a name is one on the Hub only where no such folder exists."""
    monkeypatch.chdir(tmp_path)
    Path("streets").mkdir()
    assert data_name(DataConfig(dataset="folder", data_dir="/home/me/streets")) == "streets"
    assert data_name(DataConfig(dataset="hf", data_dir="sftp://alice:hunter22@store.org")) == "store.org"
    on_hub = DataConfig(dataset="hf", data_dir="org/streets")
    assert data_name(on_hub) == _hub_name(on_hub) == "org/streets"
    assert _hub_name(DataConfig(dataset="hf", data_dir="streets")) is None and _hub_name(DataConfig(data_dir="org/streets")) is None
    assert data_name(DataConfig(dataset="camvid", data_dir="/home/me/x")) == "camvid"


def test_hostile_names_stay_text(chain, tmp_path):
    """Markdown and HTML in class names and facts are escaped."""
    names = ["a|b `c`", "<script>alert(1)</script>", "two\nlines", "*x*", "key: [value", "ünï"]
    names += [f"plain {i}" for i in range(len(CLASSES) - len(names))]
    network, record = MsclForSemanticSegmentation.from_pretrained(chain / "tuned"), read_provenance(str(chain / "tuned"))
    network.config.id2label = {i: name.replace("\n", " ") for i, name in enumerate(names)}  # a configuration rejects control characters
    for key in ("per_class_iou", "per_class_accuracy"):
        record["evaluations"][0][key] = dict.fromkeys(names, 0.5)
    record |= {"title": "a: [title", "license": "mit"}
    record["stages"][0]["facts"]["seed"] = "```\n# x | y"
    record["stages"][0]["command"] = "run ```\n# out"
    text = str(model_card(tmp_path, network, record))
    assert card_problems(text) == ([], []) and "<script>" not in text and "\n# out" not in text and "\n# x" not in text
    table = rows(section(text, "Evaluation"))
    assert all(table[cell(name)] == ["50.0", "50.0"] for name in names)


def test_the_processor_makes_batches(chain, tmp_path):
    """Images of any size make a batch: at the size of the evaluation where the data has one shape, else with the median aspect ratio."""
    class Data(list):
        def read(self, index):
            return SimpleNamespace(image=np.zeros((*self[index], 3), np.uint8))

    assert typical_size(Data([(96, 128)] * 40), 48) == (48, 64) and typical_size(Data([(96, 128)]), 0) == (96, 128)
    assert typical_size(Data([(90, 120), (120, 90), (90, 120)]), 30) == (30, 40) and typical_size(None, 30) is None
    assert typical_size(Data([(120, 90)]), 30) == (40, 30) and typical_size(Data([(90, 120), (120, 90)] * 20), 30) in ((30, 40), (40, 30))
    late = Data([(96, 128)] * 40 + [(100, 100)] * 60)  # not the first ones only
    assert typical_size(late, 50) == (50, 50)
    segment = pipeline("image-segmentation", model=str(chain / "tuned"))
    sizes = [(90, 70), (64, 128), (33, 200)]
    answers = segment([Image.new("RGB", size, "red") for size in sizes], batch_size=3)
    assert [{part["mask"].size for part in parts} for parts in answers] == [{size} for size in sizes]


@pytest.mark.parametrize("method", ["none", "imagenet"])
def test_a_control_reports_no_training(tmp_path, method):
    """Its card lists no data, no steps and no losses."""
    weights = ("--backbone-weights", tmp_path / "weights.safetensors")
    save_file(timm.create_model("test_resnet").state_dict(), weights[1])
    flags = ("--method", method, *weights[: 2 * (method == "imagenet")], "--val-split", "none", *TINY, *SHORT)
    run("pretrain", "--output-dir", tmp_path / "out", *flags, draw_features=lambda *_: None)
    text = (tmp_path / "out" / "README.md").read_text()
    table = rows(section(text, "Pre-training"))
    assert table["budget"] == ["no training"] and not {"data", "optimizer", "losses"} & table.keys() and "tau" not in text
    assert "Trained on no images" in text and card_problems(text) == ([], [])


def test_models_of_another_origin_have_cards_too(chain, tmp_path):
    """A model without provenance.json gets a card without stages."""
    network = MsclForSemanticSegmentation.from_pretrained(chain / "tuned")
    network.save_pretrained(tmp_path)
    record = read_provenance(str(tmp_path))
    assert record == {"title": None, "license": None, "stages": [], "evaluations": []}
    card = model_card(tmp_path, network, record)
    assert card_problems(str(card)) == ([], []) and "unknown images" in card.content


def test_base_model_and_data_sets_of_the_hub(chain, tmp_path):
    """The metadata names the base model and the data sets of the Hub, and no local ones."""
    network, record = MsclForSemanticSegmentation.from_pretrained(chain / "tuned"), read_provenance(str(chain / "tuned"))
    data = ModelCard((chain / "tuned" / "README.md").read_text()).data
    assert data.base_model is None and data.datasets is None
    record["stages"][0]["base_model"] = "timm/resnet18.a1_in1k"
    record["stages"][1]["data_set"] = "org/streets"
    card = model_card(tmp_path, network, record)
    assert card.data.base_model == "timm/resnet18.a1_in1k" and card.data.datasets == ["org/streets"]
    assert card_problems(str(card)) == ([], [])


def test_options_describe_options():
    """Options that are set are listed in their order."""
    facts = method_facts({"method": "moco_v2", "temperature": 0.2, "nothing": None, "empty": [], "many": [1, 2], "flag": True})
    assert facts == {"options": "temperature 0.2, many [1, 2], flag True"} and describe_options({}) == "-"


def test_processor_that_keeps_the_aspect_ratio(chain):
    """The stored processor resizes a portrait to the landscape size of the data; that of the card keeps its aspect ratio."""
    card, folder = (chain / "tuned" / "README.md").read_text(), str(chain / "tuned")
    height, width = map(int, re.search(r"resizes every image to (\d+) x (\d+) px", card).groups())
    portrait = Image.fromarray(np.zeros((width, height, 3), np.uint8))

    def shape(processor) -> tuple[int, int]:
        return tuple(processor(portrait, return_tensors="pt")["pixel_values"].shape[-2:])

    assert height < width and "such as portraits" in card
    assert shape(AutoImageProcessor.from_pretrained(folder)) == (height, width)
    short = int(re.search(r'size={"shortest_edge": (\d+)}', card).group(1))
    processor = AutoImageProcessor.from_pretrained(folder, size={"shortest_edge": short})
    assert shape(processor) == (width, height)
    parts = pipeline("image-segmentation", model=folder, image_processor=processor)(portrait)
    assert {part["mask"].size for part in parts} == {(height, width)}
    assert "keeps the aspect ratio" not in (chain / "pretrained" / "README.md").read_text()

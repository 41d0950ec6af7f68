"""The model card: written by the runs, true to their records, valid by the Hub's rules, free of the machine's paths."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness import SHORT, TINY, load_recipe, run
from hub_metadata import card_problems
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from mscl_hf import MsclForSemanticSegmentation
from mscl_hf.cli import parse
from mscl_hf.config import DataConfig
from mscl_hf.data.synthetic import CLASSES
from mscl_hf.records.redact import public
from mscl_hf.sharing.model_card import cell, copy_beside, in_words, method_facts, model_card
from mscl_hf.sharing.model_folder import typical_size
from mscl_hf.sharing.provenance import _hub_name, command_line, data_name, read_provenance, with_evaluation
from mscl_hf.sharing.upload import UNNAMED, model_files


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folders of a pre-training run and of a fine-tuning run that goes on from it, one step each."""
    folder = tmp_path_factory.mktemp("chain")
    run("pretrain", "--output-dir", folder / "pretrained", "--max-steps", 1, "--losses", "g+p", "--pixel-weight", 0.5, "--pixel-temperature", 0.2,
        "--val-split", "none", *TINY, *SHORT)  # fmt: skip
    run("finetune", "--model", folder / "pretrained", "--output-dir", folder / "tuned", "--max-steps", 1, "--loss", "ohem",
        "--license", "cc-by-4.0", *SHORT)  # fmt: skip
    return folder


def section(card: str, title: str) -> str:
    return re.search(rf"\n##+ (?:\d+\. )?{title}\n(.*?)(?=\n##+ |\Z)", card, re.S).group(1)


def rows(text: str) -> dict[str, list[str]]:
    """{first cell: the others} of the tables in a text."""
    cells = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("stage", ["pretrained", "tuned"])
def test_metadata_is_valid_and_complete(chain, stage):
    """No error and no warning by the Hub's rules; library, task, tags, licence as given."""
    text = (chain / stage / "README.md").read_text()
    assert card_problems(text) == ([], [])
    data = ModelCard(text).data
    assert data.library_name == "transformers" and {"mscl_hf", "timm"} <= set(data.tags)
    wanted = {"pretrained": (None, None), "tuned": ("image-segmentation", "cc-by-4.0")}[stage]
    assert (data.pipeline_tag, data.license) == wanted


def test_figures_are_those_of_the_evaluation(chain):
    """In the Hub's format and in the table of classes, to the last digit shown; classes that do not occur have none."""
    text, results = (chain / "tuned" / "README.md").read_text(), json.loads((chain / "tuned" / "results.json").read_text())
    found = {result.metric_type: result for result in ModelCard(text).data.eval_results}
    assert {key: result.metric_value for key, result in found.items()} == {
        key: round(results[key], 4) for key in ("mean_iou", "mean_accuracy", "overall_accuracy")
    }
    assert {(r.task_type, r.dataset_name, r.dataset_split) for r in found.values()} == {("image-segmentation", "synthetic", "val")}
    table = rows(section(text, "Figures"))
    for name in CLASSES:
        values = (results[key][name] for key in ("per_class_iou", "per_class_accuracy"))
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        assert table[name] == shown


def test_it_says_how_the_model_was_made(chain):
    """Both stages: method, losses and weights, data and labels, budget, versions; what was not trained with is not listed."""
    text = (chain / "tuned" / "README.md").read_text()
    before, after = (rows(section(text, stage)) for stage in ("Pre-training", "Fine-tuning"))
    assert before["losses"] == ["0.1 x global + 0.5 x pixel"] and r"tau\_p 0.2" in before["options"][0]
    assert r"lambda\_l" not in before["options"][0] and r"tau\_l" not in before["options"][0]
    count = SHORT[SHORT.index("--train-count") + 1]
    assert before["images with labels"] == after["images with labels"] == [str(count)]
    assert before["started from"] == ["random weights"] and after["started from"] == ["pretrained"]
    assert after["loss"] == ["ohem"] and after["budget"][0].startswith("1 steps of")
    for package in ("mscl_hf", "Python", "torch", "timm", "transformers"):
        assert re.search(rf"{re.escape(cell(package))} \d", section(text, "Versions"))
    assert "cc-by-4.0" in section(text, "License and limits") and "has not stated" not in text
    assert "has not stated a licence" in (chain / "pretrained" / "README.md").read_text()


def test_nothing_of_the_machine_gets_out(chain):
    """Neither card nor provenance holds a path of the disk; the command is there to be run again."""
    for file in ("README.md", "provenance.json"):
        text = (chain / "tuned" / file).read_text()
        assert str(chain) not in text and chain.parent.name not in text
    assert "recipes/finetune.py --model pretrained --loss ohem" in (chain / "tuned" / "README.md").read_text()


HIDDEN = {
    "/data/secret/CamVid": "CamVid", "~/masks": "masks", "../up/there": "there", "runs/../../home/me": "me", "./x/../../home/me/d": "d",
    r"C:\Users\me\data": "data", "file:///home/me/d": "d", "a,/home/me/b": "a,b", "/": "DIR",
    "file:/home/me/d": "d", "sftp://alice:hunter22@store.org": "store.org", "s3://KEY:SECRET@bucket": "bucket",
    "https://account.org/train?sv=1&sig=signed": "train",
}  # fmt: skip


@pytest.mark.parametrize("path", HIDDEN)
def test_folders_of_the_machine_become_names(path):
    """Whatever way a place outside the working folder is written, its last name is all that is published."""
    assert public(path) == HIDDEN[path]


def test_what_is_no_place_of_the_machine_stays():
    """Hub names, folders below the working one and values are published as they are; tokens are not."""
    for text in ("runs/here", "org/name", "g+l", "0.1", "a,b", "resnet18.a1_in1k"):
        assert public(text) == text
    assert "abcdefghijklmnop" not in public("hf_abcdefghijklmnop")


def test_command_repeats_the_run(tmp_path, monkeypatch):
    """Read again, the command gives the same options, whether they stood in flags or in a file; but for where to and how to go on."""
    (tmp_path / "my.yaml").write_text("losses: g+p\nmax-steps: 7\nexclude-classes: [1, 2]\npixel-bn: false\ngradient-checkpointing: true\n")
    monkeypatch.setattr("sys.argv", ["/home/me/recipes/pretrain.py"])
    kinds = load_recipe("pretrain").KINDS
    given = ["--config", str(tmp_path / "my.yaml"), "--pixel-temperature", "0.3", "--resume", "--push-to-hub", "org/name", "--output-dir", "runs/x"]
    options = parse(kinds, "", given)
    words = command_line(options).split()
    assert words[:3] == ["accelerate", "launch", "recipes/pretrain.py"] and not {"--resume", "--config", "--push-to-hub"} & set(words)
    again, wanted = (json.loads(json.dumps([vars(o) for o in found])) for found in (parse(kinds, "", words[3:]), options))
    for rows_of in (again, wanted):
        for name in ("output_dir", "resume", "push_to_hub"):
            [row.pop(name, None) for row in rows_of]
    assert again == wanted
    assert command_line(options, 2).startswith("torchrun --nproc_per_node 2 recipes/")
    assert command_line(options, 2, gpu=True).startswith("accelerate launch --num_processes 2 recipes/")


def test_its_first_example_runs(chain, tmp_path, monkeypatch, capsys):
    """The code of the card, the name filled in: the pipeline names classes at the image's own size."""
    Image.new("RGB", (90, 70), "red").save(tmp_path / "image.jpg")
    text = (chain / "tuned" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    assert UNNAMED in example
    exec(example.replace(UNNAMED, str(chain / "tuned")), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.split()[0] in CLASSES and line.endswith("(90, 70)") for line in lines)


def test_pictures_that_are_there(chain):
    """Every picture that a card shows lies beside it, and every picture beside it is shown."""
    for stage in ("pretrained", "tuned"):
        shown = set(re.findall(r"\]\((\w+\.png)\)", (chain / stage / "README.md").read_text()))
        assert shown == {path.name for path in (chain / stage).glob("*.png")} and shown


def test_evaluation_on_another_split_goes_into_the_card_that_is_pushed(chain, tmp_path, monkeypatch):
    """With --push-to-hub the model is published again, with both evaluations, the same weights and terms; without it, only results are."""
    pushed = []
    module = load_recipe("evaluate_model")
    monkeypatch.setattr(module, "check_can_push", lambda hub: None)
    monkeypatch.setattr(module, "push_result", lambda out, hub: pushed.append((out, hub.push_to_hub)))
    run("evaluate_model", "--model", chain / "tuned", "--output-dir", tmp_path / "plain", "--pictures", 1)
    assert not (tmp_path / "plain" / "model.safetensors").exists()
    run("evaluate_model", "--model", chain / "tuned", "--output-dir", tmp_path / "out", "--pictures", 1, "--push-to-hub", "org/name")
    assert [name for _, name in pushed] == [None, "org/name"] and pushed[1][0] == tmp_path / "out"
    text = (tmp_path / "out" / "README.md").read_text()
    assert card_problems(text) == ([], [])
    assert [found["split"] for found in read_provenance(str(tmp_path / "out"))["evaluations"]] == ["val", "test"]
    data = ModelCard(text).data
    assert {result.dataset_split for result in data.eval_results} == {"val", "test"} and data.license == "cc-by-4.0"
    for name in ("model.safetensors", "training.png", "preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (chain / "tuned" / name).read_bytes()


def test_a_copy_gets_a_processor_of_today(tmp_path):
    """Beside a model that is evaluated and pushed anew, a processor of an earlier version takes images of every mode."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    copy_beside(str(tmp_path / "old"), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())["do_convert_rgb"] is True


def test_a_link_beside_a_strangers_model_is_not_published(chain, tmp_path, monkeypatch, capsys):
    """evaluate --push-to-hub takes pictures along from the model's folder, but not what a link there leads to, and says so."""
    pushed, module = [], load_recipe("evaluate_model")
    monkeypatch.setattr(module, "check_can_push", lambda hub: None)
    monkeypatch.setattr(module, "push_result", lambda out, hub: pushed.extend(model_files(out)))
    stranger = shutil.copytree(chain / "tuned", tmp_path / "stranger")
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (stranger / "training.png").unlink()
    (stranger / "training.png").symlink_to(tmp_path / "id_rsa")
    run("evaluate_model", "--model", stranger, "--output-dir", tmp_path / "out", "--pictures", 1, "--push-to-hub", "org/name")
    assert "training.png of" in capsys.readouterr().out
    assert "model.safetensors" in pushed and "training.png" not in pushed and not (tmp_path / "out" / "training.png").exists()


def test_one_evaluation_a_split(chain):
    """A second evaluation on a split takes the place of the first: a model has one figure there."""
    record = read_provenance(str(chain / "tuned"))
    (options,) = [o for o in parse(load_recipe("evaluate_model").KINDS, "", []) if hasattr(o, "data_dir")]
    results = json.loads((chain / "tuned" / "results.json").read_text())
    again = with_evaluation(record, results | {"mean_iou": 0.125}, options)
    assert [found["mean_iou"] for found in again["evaluations"]] == [0.125] and record["evaluations"][0]["mean_iou"] != 0.125
    assert len(with_evaluation(record, results | {"split": "test"}, options)["evaluations"]) == 2
    assert len(with_evaluation(record, results, replace(options, dataset="camvid", data_dir="x"))["evaluations"]) == 2


def test_new_weights_drop_old_figures(chain, tmp_path):
    """Fine-tuned again, a model keeps the history of its stages and none of the figures, nor of the terms, of the weights before."""
    run("finetune", "--model", chain / "tuned", "--output-dir", tmp_path, "--max-steps", 1, "--val-split", "none", *SHORT)
    found = read_provenance(str(tmp_path))
    assert [stage["stage"] for stage in found["stages"]] == ["Pre-training", "Fine-tuning", "Fine-tuning"]
    assert not found["evaluations"] and found["license"] is None
    assert "Its accuracy was not measured." in (tmp_path / "README.md").read_text()


def test_a_card_edited_by_hand_stays(chain, tmp_path, capsys):
    """Resuming a finished run writes its card anew, unless somebody has edited it."""
    flags = ("finetune", "--model", chain / "pretrained", "--output-dir", tmp_path, "--max-steps", 1, "--val-split", "none", *SHORT)
    run(*flags)
    written = (tmp_path / "README.md").read_text()
    run(*flags, "--resume", "--license", "mit")
    assert "edited by hand" not in capsys.readouterr().out and "license: mit" in (tmp_path / "README.md").read_text() != written
    (tmp_path / "README.md").write_text("# Mine, é\n", encoding="utf-8")
    run(*flags, "--resume")
    assert "edited by hand" in capsys.readouterr().out and (tmp_path / "README.md").read_text(encoding="utf-8") == "# Mine, é\n"


BROKEN = {
    "empty": "", "no JSON": "no", "a list": "[]", "nothing in it": "{}", "half a stage": '{"stages": [{"stage": "x"}], "evaluations": []}',
    "half an evaluation": '{"stages": [], "evaluations": [{"dataset": "x"}]}',
    "nested without end": "[" * 100_000,
}  # fmt: skip
# Changes that make a sound record one that a card cannot be written from.
SPOILT = {
    "stage is a number": lambda record: record["stages"][0].update(stage=3),
    "no versions": lambda record: record["stages"][0].pop("versions"),
    "versions in a list": lambda record: record["stages"][0].update(versions=["1"]),
    "no command": lambda record: record["stages"][0].pop("command"),
    "facts are text": lambda record: record["stages"][0].update(facts="text"),
    "no budget": lambda record: record["stages"][0]["facts"].pop("budget"),
    "base model in a list": lambda record: record["stages"][0].update(base_model=["a"]),
    "half an inference": lambda record: record["evaluations"][0]["inference"].pop("scales"),
    "a figure in words": lambda record: record["evaluations"][0].update(mean_iou="much"),
    "IoU in words": lambda record: record["evaluations"][0]["per_class_iou"].update(sky="much"),
    "no accuracy of a class": lambda record: record["evaluations"][0]["per_class_accuracy"].pop("sky"),
    "a number for the title": lambda record: record.update(title=3),
    "licences in a list": lambda record: record.update(license=["mit"]),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_strangers_record_costs_no_run(chain, tmp_path, what, capsys):
    """A provenance.json that cannot be read is said to be left out, and is."""
    (tmp_path / "provenance.json").write_text(BROKEN[what])
    found = read_provenance(str(tmp_path))
    assert found["stages"] == found["evaluations"] == [] and "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("what", SPOILT)
def test_half_a_record_is_left_out_whole(chain, tmp_path, what, capsys):
    """A record that would break the writing of a card is found before the run, part by part."""
    record = json.loads((chain / "tuned" / "provenance.json").read_text())
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    assert read_provenance(str(tmp_path)) == record and not capsys.readouterr().out
    SPOILT[what](record)
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    found = read_provenance(str(tmp_path))
    assert found["stages"] == found["evaluations"] == [] and "cannot be read" in capsys.readouterr().out


def test_a_record_without_title_or_licence_is_sound(tmp_path):
    """Older records have neither; both are then not known."""
    (tmp_path / "provenance.json").write_text('{"stages": [], "evaluations": []}')
    assert read_provenance(str(tmp_path)) == {"title": None, "license": None, "stages": [], "evaluations": []}


def test_names_of_data_sets(tmp_path, monkeypatch):
    """A folder goes by its own name, without those above it; a name on the Hub is one only where there is no such folder."""
    monkeypatch.chdir(tmp_path)
    Path("streets").mkdir()
    assert data_name(DataConfig(dataset="folder", data_dir="/home/me/streets")) == "streets"
    assert data_name(DataConfig(dataset="hf", data_dir="sftp://alice:hunter22@store.org")) == "store.org"
    on_hub = DataConfig(dataset="hf", data_dir="org/streets")
    assert data_name(on_hub) == _hub_name(on_hub) == "org/streets"
    assert _hub_name(DataConfig(dataset="hf", data_dir="streets")) is None and _hub_name(DataConfig(data_dir="org/streets")) is None
    assert data_name(DataConfig(dataset="camvid", data_dir="/home/me/x")) == "camvid"


def test_hostile_names_stay_text(chain, tmp_path):
    """Class names and facts with Markdown or HTML in them stand in their cells as they are read, and run nowhere."""
    names = ["a|b `c`", "<script>alert(1)</script>", "two\nlines", "*x*", "key: [value", "ünï"]
    names += [f"plain {i}" for i in range(len(CLASSES) - len(names))]
    network, record = MsclForSemanticSegmentation.from_pretrained(chain / "tuned"), read_provenance(str(chain / "tuned"))
    network.config.id2label = dict(enumerate(names))
    for key in ("per_class_iou", "per_class_accuracy"):
        record["evaluations"][0][key] = dict.fromkeys(names, 0.5)
    record |= {"title": "a: [title", "license": "mit"}
    record["stages"][0]["facts"]["seed"] = "```\n# x | y"
    record["stages"][0]["command"] = "run ```\n# out"
    text = str(model_card(tmp_path, network, record))
    assert card_problems(text) == ([], []) and "<script>" not in text and "\n# out" not in text and "\n# x" not in text
    table = rows(section(text, "Figures"))
    assert all(table[cell(name)] == ["50.0", "50.0"] for name in names)


def test_the_processor_makes_batches(chain, tmp_path):
    """All images reach the network in one size: exactly evaluation's where the data has one shape, the median where it has several."""
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


def test_the_control_claims_no_training(tmp_path):
    """A network that was left as it starts says so: no data, no steps."""
    run("pretrain", "--output-dir", tmp_path, "--method", "none", "--val-split", "none", *TINY, *SHORT)
    text = (tmp_path / "README.md").read_text()
    table = rows(section(text, "Pre-training"))
    assert table["budget"] == ["no training"] and "data" not in table and "optimizer" not in table
    assert "Trained on no images" in text and card_problems(text) == ([], [])


def test_models_of_another_origin_have_cards_too(chain, tmp_path):
    """A model without a provenance is published with what can be known of it."""
    network = MsclForSemanticSegmentation.from_pretrained(chain / "tuned")
    network.save_pretrained(tmp_path)
    record = read_provenance(str(tmp_path))
    assert record == {"title": None, "license": None, "stages": [], "evaluations": []}
    card = model_card(tmp_path, network, record)
    assert card_problems(str(card)) == ([], []) and "images that are not known" in card.content


def test_base_model_and_data_sets_of_the_hub(chain, tmp_path):
    """What came from the Hub is named in the metadata, so that the pages link to each other; what lay on the disk is not."""
    network, record = MsclForSemanticSegmentation.from_pretrained(chain / "tuned"), read_provenance(str(chain / "tuned"))
    data = ModelCard((chain / "tuned" / "README.md").read_text()).data
    assert data.base_model is None and data.datasets is None
    record["stages"][0]["base_model"] = "timm/resnet18.a1_in1k"
    record["stages"][1]["data_set"] = "org/streets"
    card = model_card(tmp_path, network, record)
    assert card.data.base_model == "timm/resnet18.a1_in1k" and card.data.datasets == ["org/streets"]
    assert card_problems(str(card)) == ([], [])


def test_options_in_words():
    """Those that were given, in their order, without a sign that would end a cell of the table."""
    facts = method_facts({"method": "moco_v2", "temperature": 0.2, "nothing": None, "empty": [], "many": [1, 2], "flag": True})
    assert facts == {"options": "temperature 0.2, many [1, 2], flag True"} and in_words({}) == "-"


def test_card_says_how_images_keep_their_shape(chain):
    """The processor brings a portrait to the landscape shape of the data; that of the card does not, and the pipeline takes it."""
    card, folder = (chain / "tuned" / "README.md").read_text(), str(chain / "tuned")
    height, width = map(int, re.search(r"brings every image to (\d+) x (\d+) px", card).groups())
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
    assert "keeps the shape" not in (chain / "pretrained" / "README.md").read_text()

"""The model card: written by the runs, true to their records, valid by the Hub's rules, free of the machine's paths."""

import json
import re

import pytest
from harness import SHORT, TINY, load_recipe, run
from hub_metadata import card_problems
from huggingface_hub import ModelCard
from PIL import Image

from mscl_hf import MsclForSemanticSegmentation
from mscl_hf.card import NAME, in_words, method_facts, model_card, provenance, public, public_command
from mscl_hf.data.synthetic import CLASSES


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folders of a pre-training run and of a fine-tuning run that goes on from it, one step each."""
    folder = tmp_path_factory.mktemp("chain")
    run("pretrain", "--output-dir", folder / "pretrained", "--max-steps", 1, "--losses", "g+p", "--lambda-p", 0.5, "--tau-p", 0.2,
        "--val-split", "none", *TINY, *SHORT)  # fmt: skip
    run("finetune", "--model", folder / "pretrained", "--output-dir", folder / "tuned", "--max-steps", 1, "--loss", "ohem",
        "--license", "cc-by-4.0", *SHORT)  # fmt: skip
    return folder


def section(card: str, title: str) -> str:
    return re.search(rf"\n##+ (?:\d+\. )?{title}\n(.*?)(?=\n##+ |\Z)", card, re.S).group(1)


def rows(text: str) -> dict[str, list[str]]:
    """{first cell: the others} of the tables in a text."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("stage", ["pretrained", "tuned"])
def test_metadata_is_valid_and_complete(chain, stage):
    """No error and no warning by the Hub's rules; library, task, tags, licence as given."""
    text = (chain / stage / "README.md").read_text()
    assert card_problems(text) == ([], [])
    data = ModelCard(text).data
    assert data.library_name == "transformers" and {"mscl_hf", "timm"} <= set(data.tags)
    wanted = {"pretrained": ("image-feature-extraction", None), "tuned": ("image-segmentation", "cc-by-4.0")}[stage]
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
    assert before["losses"] == ["1 x global + 0.5 x pixel"] and "tau_p 0.2" in before["options"][0]
    assert "lambda_l" not in before["options"][0] and "tau_l" not in before["options"][0]
    count = SHORT[SHORT.index("--train-count") + 1]
    assert before["images with labels"] == after["images with labels"] == [str(count)]
    assert before["started from"] == ["random weights"] and after["started from"] == ["pretrained"]
    assert after["loss"] == ["loss ohem"] and after["budget"][0].startswith("1 steps of")
    for package in ("mscl_hf", "Python", "torch", "timm", "transformers"):
        assert re.search(rf"{package} \d", section(text, "Versions"))
    assert "cc-by-4.0" in section(text, "Licence and limits") and "has not stated" not in text
    assert "has not stated a licence" in (chain / "pretrained" / "README.md").read_text()


def test_nothing_of_the_machine_gets_out(chain):
    """Neither card nor provenance holds a path of the disk; the command is there to be run again."""
    for file in ("README.md", "provenance.json"):
        text = (chain / "tuned" / file).read_text()
        assert str(chain) not in text and chain.parent.name not in text
    assert "--model pretrained --output-dir tuned --max-steps 1 --loss ohem" in (chain / "tuned" / "README.md").read_text()
    argv = ["/home/me/mscl/recipes/pretrain.py", "--data-dir", "/data/secret/CamVid", "--mask-dir=~/masks", "--losses", "g+l"]
    assert public_command(argv, 2) == (
        "accelerate launch --num_processes 2 recipes/pretrain.py --data-dir CamVid --mask-dir=masks --losses g+l"
    )
    assert public_command(["/opt/bin/mscl-finetune", "--model", "org/name"]) == "mscl-finetune --model org/name"
    assert public("../up/there") == "there" and public("runs/here") == "runs/here"


def test_its_first_example_runs(chain, tmp_path, monkeypatch, capsys):
    """The code of the card, the name filled in: the pipeline names classes at the image's own size."""
    Image.new("RGB", (90, 70), "red").save(tmp_path / "image.jpg")
    text = (chain / "tuned" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    assert NAME in example
    exec(example.replace(NAME, str(chain / "tuned")), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.split()[0] in CLASSES and line.endswith("(90, 70)") for line in lines)


def test_pictures_that_are_there(chain):
    """Every picture that a card shows lies beside it, and every picture beside it is shown."""
    for stage in ("pretrained", "tuned"):
        shown = set(re.findall(r"\]\((\w+\.png)\)", (chain / stage / "README.md").read_text()))
        assert shown == {path.name for path in (chain / stage).glob("*.png")} and shown


def test_evaluation_on_another_split_goes_into_the_card_that_is_pushed(chain, tmp_path, monkeypatch):
    """With --push-to-hub the model is published again, with both evaluations and the same weights; without it, only results are written."""
    pushed = []
    module = load_recipe("evaluate")
    monkeypatch.setattr(module, "check_can_push", lambda hub: None)
    monkeypatch.setattr(module, "push_result", lambda out, hub: pushed.append((out, hub.push_to_hub)))
    run("evaluate", "--model", chain / "tuned", "--output-dir", tmp_path / "plain", "--pictures", 1)
    assert not (tmp_path / "plain" / "model.safetensors").exists()
    run("evaluate", "--model", chain / "tuned", "--output-dir", tmp_path / "out", "--pictures", 1, "--push-to-hub", "org/name")
    assert [name for _, name in pushed] == [None, "org/name"] and pushed[1][0] == tmp_path / "out"
    text = (tmp_path / "out" / "README.md").read_text()
    assert card_problems(text) == ([], []) and NAME not in text and 'model="org/name"' in text
    assert [found["split"] for found in provenance(str(tmp_path / "out"))["evaluations"]] == ["val", "test"]
    assert {result.dataset_split for result in ModelCard(text).data.eval_results} == {"val", "test"}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (chain / "tuned" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "training.png").read_bytes() == (chain / "tuned" / "training.png").read_bytes()


def test_new_weights_drop_old_figures(chain, tmp_path):
    """Fine-tuned again, a model keeps the history of its stages and none of the figures of the weights before."""
    run("finetune", "--model", chain / "tuned", "--output-dir", tmp_path, "--max-steps", 1, "--val-split", "none", *SHORT)
    found = provenance(str(tmp_path))
    assert [stage["stage"] for stage in found["stages"]] == ["Pre-training", "Fine-tuning", "Fine-tuning"] and not found["evaluations"]
    assert "Its accuracy was not measured." in (tmp_path / "README.md").read_text()


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
    record = provenance(str(tmp_path))
    assert record == {"stages": [], "evaluations": []}
    card = model_card(tmp_path, network, record, "a title", None, None)
    assert card_problems(str(card)) == ([], []) and "images that are not known" in card.content


def test_base_model_and_data_sets_of_the_hub(chain, tmp_path):
    """What came from the Hub is named in the metadata, so that the pages link to each other; what lay on the disk is not."""
    network, record = MsclForSemanticSegmentation.from_pretrained(chain / "tuned"), provenance(str(chain / "tuned"))
    data = ModelCard((chain / "tuned" / "README.md").read_text()).data
    assert data.base_model is None and data.datasets is None
    record["stages"][0]["base_model"] = "timm/resnet18.a1_in1k"
    record["stages"][1]["dataset"]["hub"] = "org/streets"
    card = model_card(tmp_path, network, record, "a title", None, None)
    assert card.data.base_model == "timm/resnet18.a1_in1k" and card.data.datasets == ["org/streets"]
    assert card_problems(str(card)) == ([], [])


def test_options_in_words():
    """Those that were given, in their order, without a sign that would end a cell of the table."""
    facts = method_facts({"method": "moco_v2", "temperature": 0.2, "nothing": None, "empty": [], "many": [1, 2], "flag": True})
    assert facts == {"options": "temperature 0.2, many [1, 2], flag True"} and in_words({}) == ""

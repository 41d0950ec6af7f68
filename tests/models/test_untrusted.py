"""An untrusted model folder runs no code, takes bounded memory, and is rejected in one sentence."""

import ast
import importlib.util
import io
import json
import pickle
import re
import runpy
import shutil
import sys
import time
from pathlib import Path

import harness
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSemanticSegmentation, PreTrainedModel, pipeline

from mscl_hf import MsclBackbone, MsclConfig, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.data.label_map import class_names
from mscl_hf.demo import command
from mscl_hf.demo.similarity import open_checkpoint
from mscl_hf.export import open_network
from mscl_hf.models import checks_mscl
from mscl_hf.models.loading import open_model
from mscl_hf.models.timm_weights import load_timm_weights
from mscl_hf.sharing.model_folder import write_model
from mscl_hf.sharing.provenance import read_provenance

CLASSES = {0: "sky", 1: "road"}


class Touch:
    """Unpickling it opens the file `sentinel` for writing."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return io.open, (str(self.sentinel), "w")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """tuned/ and pretrained/, as a run leaves them."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, network in {
        "tuned": MsclForSemanticSegmentation(harness.config(id2label=CLASSES, label2id={"sky": 0, "road": 1})),
        "pretrained": MsclForPreTraining(harness.config()),
    }.items():
        (root / name).mkdir()
        write_model(network, root / name)
    return root


@pytest.fixture
def sentinel(tmp_path) -> Path:
    return tmp_path / "code_was_run"


def pickled(sentinel: Path, file: Path, zipped: bool = True) -> None:
    """A file of weights by torch.save, or by pickle alone as torch once wrote them, with a Touch in it."""
    content = {"backbone.timm_model.conv1.weight": torch.zeros(1), "trap": Touch(sentinel)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))


def instead(name: str, zipped: bool = True):
    """A folder whose only weights are a pickle of this name."""

    def damage(folder, sentinel):
        (folder / "model.safetensors").unlink()
        pickled(sentinel, folder / name, zipped)

    damage.__name__ = f"{name}{'' if zipped else ' of old torch'}"
    return damage


def bin_index(folder, sentinel):
    (folder / "model.safetensors").unlink()
    pickled(sentinel, folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {"total_size": 4}, "weight_map": {"trap": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def index_of_bins(folder, sentinel):
    bin_index(folder, sentinel)
    (folder / "pytorch_model.bin.index.json").rename(folder / "model.safetensors.index.json")


def index_of_elsewhere(folder, sentinel):
    shutil.move(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"backbone.timm_model.conv1.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def config_names_a_bin(folder, sentinel):
    pickled(sentinel, folder / "adapter_model.bin")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))


REJECTED = {
    instead("pytorch_model.bin"): "pytorch_model.bin", instead("pytorch_model.bin", zipped=False): "pytorch_model.bin",
    instead("model.pt"): "model.pt", bin_index: "pytorch_model",
    index_of_bins: "pytorch_model-00001-of-00001.bin", index_of_elsewhere: "../elsewhere.safetensors",
    config_names_a_bin: "transformers_weights",
}  # fmt: skip


def copied(models: Path, tmp_path: Path, name: str) -> Path:
    return shutil.copytree(models / name, tmp_path / f"untrusted_{name}")


def message_of(main, monkeypatch, *arguments) -> str:
    """Run a command that must fail, and return its message."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_trap_works(tmp_path, sentinel):
    """Unpickled, the files of these tests do touch the sentinel."""
    for zipped in (True, False):
        pickled(sentinel, tmp_path / "trap.bin", zipped)
        with open(tmp_path / "trap.bin", "rb") as file:
            torch.load(file, weights_only=False) if zipped else pickle.load(file)  # noqa: S301
        assert sentinel.exists()
        sentinel.unlink()


@pytest.mark.parametrize("damage", REJECTED, ids=lambda damage: damage.__name__)
def test_weights_that_are_pickled_are_rejected_by_every_class(models, tmp_path, sentinel, damage):
    """No class, Auto class, pipeline, page or export opens them, by any name."""
    classes = (MsclForSemanticSegmentation, AutoModelForSemanticSegmentation)
    openers = [lambda f, model_cls=model_cls: open_model(model_cls, str(f)) for model_cls in classes]
    openers += [model_cls.from_pretrained for model_cls in (*classes, MsclBackbone, AutoModel)]
    openers += [lambda f: pipeline("image-segmentation", model=str(f), image_processor=str(models / "tuned")),
              lambda f: open_checkpoint(str(f)), lambda f: open_network(str(f)),
              lambda f: MsclForSemanticSegmentation.from_pretrained(f, use_safetensors=False)]  # fmt: skip
    folders = {name: copied(models, tmp_path, name) for name in ("tuned", "pretrained")}
    for folder in folders.values():
        damage(folder, sentinel)
    for opener in openers:
        with pytest.raises(ValueError) as caught:
            opener(folders["tuned"])
        assert REJECTED[damage] in str(caught.value) and re.search("Give a|Remove it", str(caught.value))
    for model_cls in (MsclForPreTraining, AutoModelForPreTraining):
        with pytest.raises(ValueError, match="Give a|Remove it"):
            model_cls.from_pretrained(folders["pretrained"])
    assert not sentinel.exists()


@pytest.mark.parametrize("damage", [instead("pytorch_model.bin"), index_of_bins], ids=lambda damage: damage.__name__)
def test_weights_that_are_pickled_are_rejected_by_every_command(models, tmp_path, sentinel, damage, monkeypatch):
    """One sentence and status 1, with what to do; the sentinel does not appear."""
    tuned, pretrained = (copied(models, tmp_path, name) for name in ("tuned", "pretrained"))
    for folder in (tuned, pretrained):
        damage(folder, sentinel)
    brief = (*harness.SHORT, "--val-split", "none", "--max-steps", 1)
    said = [
        harness.rejected("pretrain", *harness.TINY, *brief, "--start-from", pretrained, "--output-dir", tmp_path / "a"),
        harness.rejected("finetune", *brief, "--model", pretrained, "--output-dir", tmp_path / "b"),
        harness.rejected("evaluate_model", "--model", tuned, "--output-dir", tmp_path / "c"),
        harness.rejected("trainer", "--model", pretrained, "--max-steps", 1, "--output-dir", tmp_path / "d", "--train-count", 4),
        message_of(runpy.run_path(str(ROOT / "hub" / "export.py"))["main"], monkeypatch, "--model", tuned, "--to", "timm", "--output-dir",
               tmp_path / "e"),
    ]  # fmt: skip
    if importlib.util.find_spec("gradio"):
        said.append(message_of(command.main, monkeypatch, "--model", tuned))
    for sentence in said:
        assert "pytorch_model" in sentence and "safetensors" in sentence and "\n" not in sentence
    assert not sentinel.exists()


def test_pickles_beside_safetensors_stay_closed(models, tmp_path, sentinel):
    """A folder with both opens by its safetensors; what a run's own folder might hold of pickles is not read on --resume either."""
    folder = copied(models, tmp_path, "pretrained")
    for name in ("pytorch_model.bin", "model.pt", "custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"):
        pickled(sentinel, folder / name)
    wanted = load_file(folder / "model.safetensors")
    found = open_model(MsclForPreTraining, str(folder)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    flags = (*harness.SHORT, "--val-split", "none", "--max-steps", 1, "--model", folder, "--output-dir", tmp_path / "out")
    harness.run("finetune", *flags, "--save-steps", 1, pictures=False)
    for place in (tmp_path / "out", *(tmp_path / "out").glob("checkpoints/*")):
        pickled(sentinel, place / "custom_checkpoint_0.pkl")
        pickled(sentinel, place / "optimizer.bin")
    harness.run("finetune", *flags, "--save-steps", 1, "--resume", pictures=False)
    assert not sentinel.exists()


def test_adapters_are_rejected(models, tmp_path, monkeypatch):
    """Where peft is installed transformers would follow them, to another model or to a pickle; without it they are files like others.
    Commands open no adapter, installed or not."""
    folder = copied(models, tmp_path, "tuned")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    for installed in (True,) if checks_mscl.is_peft_available() else (False, True):
        monkeypatch.setattr(checks_mscl, "is_peft_available", lambda installed=installed: installed)
        if installed:
            assert "holds an adapter beside" in rejection(open_model, MsclForSemanticSegmentation, str(folder))
        else:
            open_model(MsclForSemanticSegmentation, str(folder))
    (folder / "config.json").unlink()
    for model_cls in (MsclConfig, MsclForSemanticSegmentation, AutoModelForSemanticSegmentation):
        assert "Merge it into its model" in rejection(open_model, model_cls, str(folder))


def test_a_planted_checkpoint_of_trainer_runs_no_code(models, tmp_path, sentinel):
    """recipes/trainer.py --resume reads what transformers' Trainer has saved, tensors only: a file with more in it ends the run."""
    flags = ("--model", models / "pretrained", "--train-count", 4, "--val-split", "none", "--per-device-train-batch-size", 2,
             "--save-steps", 1, "--output-dir", tmp_path / "out", "--report-to", "none")  # fmt: skip
    harness.run("trainer", *flags, "--max-steps", 1)
    folder = tmp_path / "out" / "checkpoint-1"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        pickled(sentinel, folder / name)
    with pytest.raises((SystemExit, pickle.UnpicklingError)):
        harness.run("trainer", *flags, "--max-steps", 2, "--resume")
    assert not sentinel.exists()


def test_backbone_weights_are_safetensors(tmp_path, sentinel):
    """Any other file is rejected before it is opened, with the way to convert it; so is a pickle with the suffix .safetensors."""
    network = MsclForPreTraining(harness.config())
    for name in ("weights.pth", "weights.pt", "weights.bin", "weights", "weights.safetensors"):
        pickled(sentinel, tmp_path / name)
        with pytest.raises(ValueError, match="Convert it as in docs/backbones.md" if "tensors" not in name else "holds no weights"):
            load_timm_weights(network, file=str(tmp_path / name))
    assert not sentinel.exists()


def test_no_code_of_a_processor_is_run(models, tmp_path, monkeypatch):
    """Trainer's recipe opens image processors by their name; one with code is rejected without a prompt."""
    folder = copied(models, tmp_path, "pretrained")
    trap = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Processor: pass\n")
    said = {"auto_map": {"AutoImageProcessor": "evil.Processor"}, "image_processor_type": "Evil"}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    message = harness.rejected("trainer", "--model", folder, "--max-steps", 1, "--train-count", 4, "--output-dir", tmp_path / "a")
    assert "cannot open a model" in message and not trap.exists()


FORBIDDEN = {"pickle", "cloudpickle", "joblib", "dill", "marshal", "shelve"}
# An exported load.py is run before it is handed out; its text is made here, of identifiers and reprs (`check_names`).
EXCEPTIONS = {("state_dicts.py", "exec")}


def dangers(source: str) -> set[str]:
    """What would unpickle, or run text as code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module.split(".")[0]} & FORBIDDEN
        elif isinstance(node, ast.Call):
            of = node.func
            found |= {of.id} & {"eval", "exec", "compile", "__import__"} if isinstance(of, ast.Name) else set()
            if isinstance(of, ast.Attribute) and isinstance(of.value, ast.Name):
                found |= {f"{of.value.id}.{of.attr}"} & {"torch.load", "yaml.load", "pickle.load", "pd.read_pickle"}
            found |= {f"{key.arg}=" for key in node.keywords if key.arg in ("allow_pickle", "trust_remote_code")}
            found |= {f"{key.arg}=" for key in node.keywords if key.arg == "weights_only" and getattr(key.value, "value", 0) is not True}
    return found


def test_nothing_in_the_sources_unpickles_or_runs_text():
    """No pickle, torch.load, cloudpickle, joblib, eval or exec in the package, its recipes and its Hub files, but for what is named."""
    found = {(path.name, danger) for place in ("mscl_hf", "recipes", "hub") for path in (ROOT / place).rglob("*.py")
             for danger in dangers(path.read_text())}  # fmt: skip
    assert found == EXCEPTIONS
    assert dangers("import pickle\nfrom joblib import load\neval('1')\ntorch.load(f, weights_only=False)") == {
        "pickle", "joblib", "eval", "torch.load", "weights_only="}  # fmt: skip


# -- configurations ------------------------------------------------------------------------------------------------------------


def nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


HOSTILE = {
    "an unknown field": ({"my_note": {"a": 1}}, "unknown field 'my_note'"),
    "a quantized model": ({"quantization_config": {"quant_method": "x"}}, "quantization_config"),
    "foreign patches": ({"fusion_config": {"x": {}}}, "unknown field 'fusion_config'"),
    "other files of weights": ({"transformers_weights": "../x.bin"}, "unknown field 'transformers_weights'"),
    "a pipeline that is a list": ({"custom_pipelines": ["x"]}, "custom_pipelines is ['x']"),
    "a type in a dictionary": ({"dtype": {"": "load"}}, "dtype is {'': 'load'}"),
    "kernels of a stranger": ({"attn_implementation": "someone/kernel"}, "unknown field 'attn_implementation'"),
    "a model of the Hub": ({"backbone": "hf-hub:someone/x"}, "plain timm name"),
    "a folder": ({"backbone": "local-dir:/somewhere"}, "plain timm name"),
    "no timm name": ({"backbone": "no_such_network"}, "no_such_network"),
    "a backbone that is a list": ({"backbone": ["resnet18"]}, "backbone is ['resnet18']"),
    "many classes": ({"num_labels": 10**9, "id2label": None, "label2id": None}, "num_labels is 1000000000"),
    "a large crop": ({"image_size": 10**9}, "image_size is 1000000000"),
    "a wide decoder": ({"decoder_channels": 10**9}, "decoder_channels is 1000000000"),
    "a wide head": ({"pixel_dim": 10**9}, "pixel_dim is 1000000000"),
    "many layers": ({"local_layers": 10**9}, "local_layers is 1000000000"),
    "many channels": ({"num_channels": 10**9}, "num_channels is 1000000000"),
    "a wide backbone": ({"backbone_kwargs": {"base_width": 10**9}}, "backbone_kwargs is {'base_width': 1000000000}"),
    "blocks without end": (
        {"backbone": "resnet18", "stage_names": None, "backbone_kwargs": {"layers": [16384] * 4}}, "more than 8,000 modules"),
    "text for a number": ({"image_size": "large"}, "image_size is 'large'"),
    "true for a number": ({"decoder_channels": True}, "decoder_channels is True"),
    "a number for a list": ({"decoder_rates": 6}, "decoder_rates is 6"),
    "a list for options": ({"backbone_kwargs": [1]}, "backbone_kwargs is [1]"),
    "nested options": ({"contrast": {"a": nested(50)}}, "contrast"),
    "no tap": ({"out_indices": [99], "stage_names": None}, "99"),
    "a tap that is text": ({"out_indices": ["last"]}, "out_indices is ['last']"),
    "taps without end": ({"out_indices": [0] * 5000}, "out_indices"),
    "no number": ({"decoder_dropout": float("nan")}, "decoder_dropout is nan"),
    "no mean": ({"image_mean": [float("nan")] * 3}, "image_mean is [nan, nan, nan]"),
    "no deviation": ({"image_std": [0, 1, 1]}, "image_std is [0, 1, 1]"),
    "a single mean": ({"image_mean": [0.5]}, "image_mean has 1 values"),
    "many deviations": ({"image_std": [0.5] * 1000}, "image_std has 1000 values"),
    "a method that is a list": ({"contrast": {"method": ["x"]}, "heads": ["g"]}, "contrast is {'method': ['x']}"),
    "an escape code in a class": ({"id2label": {"0": "sky", "1": "ro\x1b[2Jad"}, "label2id": None}, "id2label"),
    "half a character in a class": ({"id2label": {"0": "sky", "1": "\ud800"}, "label2id": None}, "id2label"),
    "an escape code in a name": ({"decoder_type": "\x1b[31mfcn"}, "decoder_type is '\\x1b[31mfcn'"),
    "an infinite weight": ({"auxiliary_loss_weight": float("inf")}, "auxiliary_loss_weight is inf"),
    "an unknown decoder": ({"decoder_type": "unet"}, "'unet'"),
    "an unknown head": ({"heads": ["q"]}, "heads is ['q']"),
    "heads without end": ({"heads": ["global"] * 100_000}, "heads is ['global', "),
    "another type": ({"dtype": "load"}, "dtype is 'load'"),
    "labels in a list": ({"id2label": ["a", "b"]}, "id2label is ['a', 'b']"),
    "ids that are none": ({"id2label": {"0": "a", "x": "b"}, "label2id": None}, "id2label"),
}  # fmt: skip


def rejection(call, *arguments) -> str:
    """Return the message of the ValueError, which has one line and comes within 5 s."""
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and time.process_time() - start < 5, message
    return message


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configurations(models, tmp_path, case, monkeypatch):
    """They are rejected in one sentence that names the field, without network access."""
    changes, expected = HOSTILE[case]
    folder = copied(models, tmp_path, "tuned")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    monkeypatch.setattr("socket.socket.connect", None)
    assert expected in rejection(open_network, str(folder))
    assert expected in rejection(open_checkpoint, str(folder))


def test_hostile_files_of_configurations(models, tmp_path):
    """Ten million labels, lists in lists in lists, numbers of thousands of digits, no JSON, no object: each is one sentence."""
    folder = copied(models, tmp_path, "tuned")
    whole = json.loads((folder / "config.json").read_text())
    labels = ",".join(f'"{i}":"c"' for i in range(400_000))  # the rest of ten million adds nothing: the size is looked at first
    texts = {
        f'{{"id2label": {{{labels}}}}}': f"at most {checks_mscl.JSON_BYTES:,}",
        json.dumps(whole | {"id2label": {str(i): f"c{i}" for i in range(20_000)}, "label2id": None}): "at most 10000 classes",
        '{"contrast": ' + "[" * 100_000 + "]" * 100_000 + "}": "cannot be read",
        '{"image_size": ' + "9" * 6000 + "}": "cannot be read",
        "[]": "holds a list", "{": "valid JSON", "": "valid JSON", '"text"': "holds a str", "\x00": "valid JSON",
    }  # fmt: skip
    for text, expected in texts.items():
        (folder / "config.json").write_text(text)
        assert expected in rejection(open_model, MsclConfig, str(folder)), text[:40]


def test_files_beside_the_weights_are_bounded(models, tmp_path, capsys):
    """An index, or a record of the model's history, that is beyond the bound of config.json is not read."""
    folder = copied(models, tmp_path, "tuned")
    (folder / "provenance.json").write_text(json.dumps({"stages": [], "evaluations": [], "title": "x" * checks_mscl.JSON_BYTES}))
    assert read_provenance(str(folder))["title"] is None and f"at most {checks_mscl.JSON_BYTES:,}" in capsys.readouterr().out
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}, "metadata": "x" * checks_mscl.JSON_BYTES}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"at most {checks_mscl.JSON_BYTES:,}" in rejection(open_network, str(folder))


@pytest.mark.parametrize("name", ["ro\x1b[31mad", "\ud800", "a\tb", "\x00"])
def test_names_of_classes_reach_no_terminal_with_control_characters(name):
    """Neither from a configuration, nor from a list or a data set that names them; other letters of the world are names."""
    for call in (lambda: class_names(["sky", name], None), lambda: MsclConfig(id2label={0: "sky", 1: name})):
        assert name not in rejection(call)
    good = ["ciel d'été", "mặt đường", "می‌خواهم", "$x$", "道路 1"]
    assert class_names(good, None) == tuple(good) == tuple(MsclConfig(id2label=dict(enumerate(good))).id2label.values())


# -- weights -------------------------------------------------------------------------------------------------------------------


def rewritten(file: Path, change) -> None:
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def first_weight(header: dict) -> dict:
    return header["backbone.timm_model.conv1.weight"] if "backbone.timm_model.conv1.weight" in header else next(
        value for key, value in header.items() if key.endswith("weight") and len(value["shape"]) == 4)


DAMAGES = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "empty": lambda file: file.write_bytes(b""),
    "a header of 100 MB": lambda file: file.write_bytes((100 * 1024**2).to_bytes(8, "little") + file.read_bytes()[8:]),
    "a header beyond all bounds": lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:]),
    "more behind the last tensor": lambda file: file.write_bytes(file.read_bytes() + b"more"),
    "an unknown type": lambda file: rewritten(file, lambda header: first_weight(header).update(dtype="Q9")),
    "another shape": lambda file: rewritten(file, lambda header: first_weight(header).update(shape=first_weight(header)["shape"][::-1])),
    "a shape of another size": lambda file: rewritten(file, lambda header: first_weight(header).update(shape=[1])),
    "offsets outside": lambda file: rewritten(file, lambda header: first_weight(header).update(data_offsets=[0, 10**12])),
    "a pickle": lambda file: torch.save({}, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_hostile_weights(models, tmp_path, damage):
    """Evaluation and fine-tuning reject a damaged model.safetensors in one sentence that names the folder, with status 1."""
    for recipe, name in (("evaluate_model", "tuned"), ("finetune", "pretrained")):
        folder = copied(models, tmp_path, name)
        DAMAGES[damage](folder / "model.safetensors")
        more = (*harness.SHORT, "--val-split", "none", "--max-steps", 1) if recipe == "finetune" else ()
        assert folder.name in harness.rejected(recipe, "--model", folder, *more, "--output-dir", tmp_path / recipe)


TYPES = {
    "a statistic as integers": ("test_resnet", "decoder.fuse.1.running_var", torch.int32, "as I32; expected one of"),
    "a statistic in eight bits": ("test_resnet", "decoder.fuse.1.running_mean", torch.float8_e4m3fn, "as F8_E4M3; expected one of"),
    "a count as a number": ("test_resnet", "decoder.fuse.1.num_batches_tracked", torch.float32, "as F32; expected one of"),
    "a weight as integers": ("test_resnet", "classifier.weight", torch.int64, "as I64; expected one of"),
    "positions as integers": ("test_vit", "backbone.timm_model.pos_embed", torch.int32, "as I32; expected one of"),
    "a token as truth values": ("test_vit", "backbone.timm_model.cls_token", torch.bool, "as BOOL; expected one of"),
}  # fmt: skip


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "in shards"])
@pytest.mark.parametrize("case", TYPES)
def test_integers_for_weights_are_rejected(tmp_path, case, shards):
    """A weight or buffer of another type than the model's, in a file or a shard, is not converted silently."""
    backbone, key, dtype, message = TYPES[case]
    network = MsclForSemanticSegmentation(harness.config(backbone, id2label=CLASSES, label2id={"sky": 0, "road": 1}))
    network.save_pretrained(tmp_path, max_shard_size="200KB" if shards else "1GB")
    (file,) = (file for file in tmp_path.glob("*.safetensors") if key in load_file(file))
    assert ("-of-" in file.name) is shards
    save_file(load_file(file) | {key: load_file(file)[key].to(dtype)}, file, {"format": "pt"})
    error = rejection(open_network, str(tmp_path))
    assert key in error and message in error


UNHELD = {
    "a decoder": {"decoder_channels": 2048, "decoder_rates": list(range(1, 17))},
    "a backbone": {"backbone": "resnet50", "stage_names": None, "decoder_channels": 4096, "backbone_kwargs": {"channels": [16384] * 4}},
    "blocks": {"backbone": "resnet50", "stage_names": None, "backbone_kwargs": {"layers": [150] * 4}},
}


@pytest.mark.parametrize("case", UNHELD)
def test_what_no_file_holds_is_rejected_before_it_takes_memory(models, tmp_path, case, monkeypatch):
    """A configuration of gigabytes with a few bytes of weights is rejected by the headers, while the model is on the meta device."""
    folder = copied(models, tmp_path, "tuned")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | UNHELD[case]))
    save_file({"classifier.bias": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", None)  # where memory is taken
    assert "lacks" in rejection(open_network, str(folder)) and "lacks" in rejection(open_checkpoint, str(folder))


def test_new_parts_are_bounded(models, monkeypatch):
    """New heads are in no file: beyond a bound they are rejected before they take memory."""
    new = {"id2label": CLASSES, "label2id": None}
    assert open_model(MsclForSemanticSegmentation, str(models / "pretrained"), **new).classifier.bias.shape == (2,)
    monkeypatch.setattr(checks_mscl, "MOST_NEW", 100)
    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", None)
    assert "that its files do not hold" in rejection(lambda: open_model(MsclForSemanticSegmentation, str(models / "pretrained"), **new))

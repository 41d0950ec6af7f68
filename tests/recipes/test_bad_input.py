"""Wrong input ends in one sentence that names it, before the first step, with status 1 and nothing lost."""

import json
import shutil

import harness
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from test_recipes import write_folder, write_parquet

from mscl_hf.data import load_data
from mscl_hf.data.dataset import BadSample, SegmentationData
from mscl_hf.data.image_io import LFS_POINTER
from mscl_hf.data.label_map import class_names
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.training import checkpoint_folder
from mscl_hf.transforms.views import TrainView

BASE = {
    "pretrain": (*harness.TINY, *harness.SHORT, "--val-split", "none", "--max-steps", 1),
    "finetune": (*harness.SHORT, "--val-split", "none", "--max-steps", 1),
    "evaluate_model": (),
}
FOLDER = (*harness.TINY, "--dataset", "folder", "--batch-size", 2, "--dataloader-num-workers", 0, "--max-steps", 1)


def rejected(name: str, out, *flags) -> str:
    """The rejection of a recipe; it must leave no more than the record of its start in the output folder."""
    message = harness.rejected(name, *BASE[name], "--output-dir", out, *flags)
    assert not out.is_dir() or {path.name for path in out.iterdir()} <= {"run.json", "config.yaml", ".lock"}
    return message


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders to point at: a pre-trained model, a fine-tuned one, damaged ones, data of several kinds."""
    root = tmp_path_factory.mktemp("places")
    quick = {"draw_training": lambda *_: None}
    harness.run("pretrain", *BASE["pretrain"], "--method", "none", "--output-dir", root / "model", **quick, draw_features=lambda *_: None)
    harness.run("finetune", *BASE["finetune"], "--model", root / "model", "--output-dir", root / "tuned", **quick)
    for name in ("empty", "no_model", "no_weights", "bad_config"):
        (root / name).mkdir()
    (root / "no_model" / "notes.txt").write_text("nothing here")
    shutil.copy(root / "model" / "config.json", root / "no_weights")
    (root / "bad_config" / "config.json").write_text("{")
    shutil.copytree(root / "model", root / "cut_off")
    whole = (root / "model" / "model.safetensors").read_bytes()
    (root / "cut_off" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    write_folder(root / "data", splits=("train", "val"))
    write_folder(root / "pictures", masks=False, splits=("train",))
    write_parquet(root / "parquet", count=4)
    (root / "file").write_text("a regular file")
    return root


PRETRAIN = {
    "unknown backbone": (("--backbone", "resnet5O"), ("--backbone is 'resnet5O'", "resnet50")),
    "unknown method": (("--method", "msl"), ("--method is 'msl'", "did you mean mscl")),
    "unknown losses": (("--losses", "g+x"), ("--losses is 'g+x'", "global+local+pixel")),
    "repeated loss": (("--losses", "g+g"), ("--losses is 'g+g'",)),
    "no loss": (("--losses", ""), ("--losses is ''",)),
    "unknown option": (("--losse", "g"), ("--losse is not an option", "--losses")),
    "ill-typed option": (("--max-steps", "many"), ("--max-steps", "'many'")),
    "unknown data set": (("--dataset", "camvidd"), ("--dataset is 'camvidd'", "camvid")),
    "no folder given": (("--dataset", "folder"), ("images/ and masks/",)),
    "no data folder given": (("--dataset", "camvid"), ("--data-dir", "train.txt")),
    "a data folder and no data set": (("--data-dir", "{}/data"), ("--data-dir is {}/data and --dataset is synthetic",
                                      "Give --dataset folder (or camvid, ")),
    "a folder of images and no data set": (("--image-dir", "{}/data/images"), ("--image-dir is {}/data/images", "Give --dataset folder")),
    "a column and no data set": (("--image-column", "photo"), ("--image-column is photo", "Give --dataset hf")),
    "data folder not there": (("--dataset", "folder", "--data-dir", "{}/gone"), ("--data-dir is {}/gone",)),
    "data folder without images": (("--dataset", "folder", "--data-dir", "{}/empty"), ("{}/empty holds no images",)),
    "data folder of another layout": (("--dataset", "camvid", "--data-dir", "{}/empty"), ("{}/empty", "the split is 'train'", "train.txt")),
    "missing split, drawn": (("--train-split", "trian"), ("--train-split is 'trian'", "train, val, test")),
    "missing split, folder": (("--dataset", "folder", "--data-dir", "{}/data", "--train-split", "test", "--train-count", 4),
                              ("--train-split is 'test'", "train, val")),
    "missing held-out split": (("--val-split", "dev"), ("--val-split is 'dev'", "train, val, test")),
    "pixel loss without masks": (("--dataset", "folder", "--data-dir", "{}/pictures", "--train-count", 4),
                                 ("no masks", "--losses")),
    "a batch of one": (("--batch-size", 1), ("--batch-size is 1", "at least 2")),
    "a batch of one, blocks of others": (("--batch-size", 1, "--losses", "l", "--local-scope", "others"), ("at least 2",)),
    "a batch of one, partners": (("--batch-size", 1, "--losses", "p", "--pixel-scope", "cross"), ("at least 2",)),
    "a batch of one, checked before the data": (("--batch-size", 1, "--dataset", "camvid"), ("--batch-size is 1", "--method mscl")),
    "zhao's scope, checked before the data": (("--method", "zhao_batch", "--pixel-scope", "within", "--dataset", "camvid"),
                                              ("--pixel-scope is within", "expected batch with --method zhao_batch")),
    "a queue without its loss": (("--losses", "p", "--queue-size", 64), ("--queue-size is 64", "--losses pixel")),
    "an excluded class that is none": (("--exclude-classes", 99), ("--exclude-classes is 99", "0..7")),
    "too many labelled": (("--labelled-share", 1.5, "--unlabelled", "rest"), ("--labelled-share is 1.5", "at most 1")),
    "a share without unlabelled": (("--labelled-share", 0.3), ("--labelled-share is 0.3", "Give --unlabelled")),
    "no labelled": (("--labelled-share", 0), ("--labelled-share is 0.0", "above 0")),
    "unlabelled folder not there": (("--unlabelled", "{}/gone"), ("--unlabelled is {}/gone",)),
    "a second folder for g": (("--unlabelled", "{}/pictures", "--losses", "g"), ("--unlabelled is {}/pictures", "--dataset folder")),
    "too few labels asked": (("--train-count", 0), ("--train-count is 0", "1..512")),
    "too many labels asked": (("--train-count", 513), ("--train-count is 513", "1..512")),
    "fraction and count": (("--train-fraction", 0.5), ("--train-fraction is 0.5", "expected one of them")),
    "stride no family has": (("--output-stride", 7), ("--output-stride is 7", "8, 16 or 32")),
    "stride this family lacks": (("--backbone", "test_vit", "--output-stride", 8), ("--output-stride is 8", "expected 16")),
    "unknown decoder": (("--decoder", "unet"), ("'unet'", "deeplabv3")),
    "unknown attachment": (("--attach", "head"), ("'head'", "ancestor")),
    "unknown geometry": (("--geometry", "warp"), ("'warp'", "shared")),
    "scales reversed": (("--min-scale", 3), ("--min-scale is 3.0", "--max-scale 2.0")),
    "temperature zero": (("--global-temperature", 0), ("--global-temperature is 0.0", "above 0")),
    "unknown reduction": (("--pixel-reduction", "mean"), ("'mean'", "out, in")),
    "unknown label rule": (("--label-downsampling", "near"), ("'near'", "majority")),
    "weights not there": (("--backbone-weights", "{}/gone.pth"), ("{}/gone.pth",)),
    "unknown precision": (("--mixed-precision", "fp8"), ("'fp8'", "no, bf16, fp16")),
    "unknown optimizer": (("--optim", "lamb"), ("'lamb'", "sgd, adamw, lars")),
    "unknown schedule": (("--lr-scheduler-type", "step"), ("'step'", "cosine, polynomial")),
    "unknown tracker": (("--report-to", "mlflow"), ("mlflow", "tensorboard")),
    "rate zero": (("--learning-rate", 0), ("--learning-rate is 0.0",)),
    "rate not a number": (("--learning-rate", "nan"), ("--learning-rate is nan",)),
    "no steps": (("--max-steps", 0), ("--max-steps is 0",)),
    "negative workers": (("--dataloader-num-workers", -1), ("--dataloader-num-workers is -1",)),
    "negative seed": (("--seed", -1), ("--seed is -1",)),
    "negative limit of bad images": (("--max-bad-images", -1), ("--max-bad-images is -1",)),
    "hf without a place": (("--dataset", "hf"), ("--data-dir",)),
    "hf, nothing there": (("--dataset", "hf", "--data-dir", "{}/gone"), ("{}/gone",)),
    "hf, unknown column": (("--dataset", "hf", "--data-dir", "{}/parquet", "--image-column", "picture"),
                           ("'picture'", "image (Image), mask (Image)")),
    "part of a stream": (("--dataset", "hf", "--data-dir", "{}/parquet", "--streaming"), ("--train-count", "--streaming")),
    "labels wanted, none there": (("--method", "zhao_within", "--dataset", "folder", "--data-dir", "{}/pictures", "--train-count", 4),
                                  ("no masks", "--list-methods")),
    "a queue that no batch fits": (("--method", "moco_v2", "--queue-size", 3), ("--queue-size is 3", "at least 4")),
    "mscl's queue that no batch fits": (("--queue-size", 3), ("--queue-size is 3", "at least 4")),
    "one image to paste": (("--method", "cp2", "--train-count", 1), ("copy_paste views", "has 1 image")),
    "a map of one cell": (("--method", "pixpro", "--output-stride", 32), ("--method pixpro", "of 1 x 1", "--image-size")),
    "a decoder's map of few cells": (("--method", "chaitanya_global_local"), ("--method chaitanya_global_local", "2 x 2", "7 x 7")),
    "slices of none": (("--method", "chaitanya_global", "--variant", "GD"), ("--variant is GD", "volume and position", "--variant GR")),
    "an unknown variant": (("--method", "zhao_cross", "--variant", "GD"), ("--variant is GD", "published or released")),
    "towers that cannot be halved": (("--method", "cmc", "--backbone", "vgg16_bn"), ("'vgg16_bn'", "halves its width")),
    "towers behind a decoder": (("--method", "cmc", "--backbone", "resnet10t", "--attach", "decoder"), ("--attach is decoder",)),
    "an unknown bank loss": (("--method", "instdisc", "--bank-loss", "nec"), ("'nec'", "softmax, nce")),
    "weights that need a network": (("--method", "imagenet"), ("cannot be downloaded (HF_HUB_OFFLINE is set", "--backbone-weights")),
    "another method's option": (("--method", "simclr", "--ema-momentum", 0.9), ("--ema-momentum is not an option of --method simclr",)),
    "mscl's option": (("--method", "byol", "--global-temperature", 0.5), ("--global-temperature is not an option", "--hidden-dim")),
    "an option of an absent head": (("--method", "simclr", "--local-grid", 5), ("--local-grid is not an option", "no local head")),
    "an option of a loss that zhao lacks": (("--method", "zhao_within", "--global-temperature", 0.2),
                                            ("--global-temperature is 0.2", "without a global loss")),
    "an option of an absent loss": (("--losses", "g+p", "--local-scope", "image"), ("--local-scope is image", "without a local loss")),
    "an option of two other losses": (("--losses", "p", "--denominator", "literal"), ("--denominator is literal", "global or local")),
    "more blocks than positions": (("--local-grid", 50), ("--local-grid is 50; expected at most 2, since the feature map is 2 x 2",)),
    "an option of an idle head": (("--losses", "pixel", "--local-grid", 4), ("--local-grid is not an option", "no local head")),
    "an option of other views": (("--method", "simclr", "--geometry", "crops"), ("--geometry is crops", "--min-area")),
    "a bank of a stream": (("--method", "instdisc", "--dataset", "hf", "--data-dir", "{}/parquet", "--streaming"), ("--train-count",)),
    "a momentum above one": (("--method", "byol", "--ema-momentum", 1.5), ("--ema-momentum is 1.5", "at most 1")),
    "no width": (("--method", "byol", "--hidden-dim", 0), ("--hidden-dim is 0", "at least 1")),
    "a stage that wants one crop": (("--method", "chaitanya_global_local", "--image-size", 64, "--output-stride", 8,
                                     "--geometry", "crops"), ("--geometry is crops", "shared or none")),
    "images that no loss sees": (("--method", "zhao_cross", "--unlabelled", "rest"), ("--unlabelled is rest", "labelled images only")),
    "statistics of views that never meet": (("--method", "moco_v1", "--bn-views", "separate"), ("--bn-views is separate", "leave it out")),
    "one image to normalize": (("--method", "byol", "--batch-size", 1), ("--batch-size is 1", "at least 2")),
    "an axis that is none": (("--method", "cp2", "--dense-axis", "keys"), ("--dense-axis is 'keys'", "key, query")),
    "a gamma below one": (("--method", "pixpro", "--ppm-gamma", 0.5), ("--ppm-gamma is 0.5", "at least 1")),
    "mscl and an option of others": (("--temperature", 0.5), ("--temperature is not an option of --method mscl", "--pixel-temperature")),
    "unknown preset": (("--method", "byol", "--preset", "mocov2"), ("'mocov2'", "moco_v2")),
    "output below a file": (("--output-dir", "{}/file/out"), ("cannot write to {}/file/out",)),
    "output is a file": (("--output-dir", "{}/file"), ("cannot write to {}/file",)),
}  # fmt: skip
SEMI = ("--model", "{}/model", "--semi-supervised", "fixmatch", "--unlabelled", "rest")
FINETUNE = {
    "no such folder": (("--model", "{}/gone"), ("no model folder {}/gone",)),
    "a data folder and no data set": (("--model", "{}/model", "--data-dir", "{}/data"), ("--data-dir is {}/data", "Give --dataset folder")),
    "classes and no data set": (("--model", "{}/model", "--classes", "a", "b"),
                                ("--classes is ['a', 'b']", "give --dataset folder (or list, coco, labelme, cvat, hf)")),
    "a folder that is no model": (("--model", "{}/no_model"), ("{}/no_model holds no model",)),
    "a folder without weights": (("--model", "{}/no_weights"), ("{}/no_weights", "model.safetensors")),
    "a broken configuration": (("--model", "{}/bad_config"), ("{}/bad_config", "JSON")),
    "weights cut off": (("--model", "{}/cut_off"), ("{}/cut_off",)),
    "a name that cannot be reached": (("--model", "someone/something"),
                                      ("'someone/something'", "the Hub was not asked", "HF_HUB_OFFLINE is set")),
    "a backbone": (("--model", "resnet18.a1_in1k"), ("a backbone of timm", "Run mscl-pretrain --backbone resnet18.a1_in1k")),
    "no masks": (("--model", "{}/model", "--dataset", "folder", "--data-dir", "{}/pictures", "--train-count", 4), ("has no masks",)),
    "scale zero": (("--model", "{}/model", "--min-scale", 0), ("--min-scale is 0.0", "at least 0.001")),
    "dropout of everything": (("--model", "{}/model", "--dropout", 1), ("--dropout is 1.0",)),
    "negative weight": (("--model", "{}/model", "--auxiliary-loss-weight", -1), ("--auxiliary-loss-weight is -1.0",)),
    "no pixels": (("--model", "{}/model", "--image-size", 0), ("--image-size is 0", "at least 16")),
    "missing held-out split": (("--model", "{}/model", "--val-split", "dev"), ("--val-split is 'dev'", "train, val, test")),
    "no unlabelled images": (("--model", "{}/model", "--semi-supervised", "fixmatch"),
                             ("--semi-supervised is fixmatch", "--unlabelled rest")),
    "unlabelled images that nothing reads": (("--model", "{}/model", "--unlabelled", "rest"),
                                             ("--unlabelled is rest, and only semi", "Give --semi-supervised")),
    "a threshold that nothing reads": (("--model", "{}/model", "--confidence-threshold", 0.5), ("--confidence-threshold is 0.5",)),
    "a temperature that nothing reads": (("--model", "{}/model", "--contrast-temperature", 0.5), ("without --pixel-contrast",)),
    "a sampling that nothing reads": (("--model", "{}/model", "--contrast-sampling", "reco"), ("--contrast-sampling is reco without",)),
    "a threshold above one": ((*SEMI, "--confidence-threshold", 1.5), ("--confidence-threshold is 1.5; expected at least 0 and at",)),
    "a last step without others": (("--model", "{}/model", "--publish-step", "last"), ("--publish-step is last without --eval-steps",)),
    "LoRA on a convolutional network": (("--model", "{}/model", "--lora-rank", 4), ("test_resnet has no attention layers",)),
    "LoRA and a frozen backbone": (("--model", "{}/model", "--lora-rank", 4, "--freeze", 2), ("--freeze is 2 with --lora-rank",)),
    "a freeze that ends after the run": (
        ("--model", "{}/model", "--freeze", 2, "--freeze-steps", 9, "--max-steps", 9), ("--freeze-steps is 9; expected fewer than the 9",)
    ),
    "freeze steps of nothing": (("--model", "{}/model", "--freeze-steps", 9), ("--freeze-steps is 9 without --freeze",)),
    "an unknown part to freeze": (("--model", "{}/model", "--freeze", "half"), ("--freeze is 'half'", "expected none, backbone, or")),
    "more stages than there are": (("--model", "{}/model", "--freeze", 99), ("--freeze is 99", "a number from 1 to 5")),
    "an unknown semi-supervised method": (("--model", "{}/model", "--semi-supervised", "fixmach"), ("'fixmach'", "did you mean fixmatch")),
    "one unlabelled image with cutmix": ((*SEMI, "--unlabelled-batch-size", 1),
                                         ("--unlabelled-batch-size is 1; expected a multiple of 2", "--cutmix-probability 0")),
    "an odd batch with cutmix": ((*SEMI, "--batch-size", 3), ("--unlabelled-batch-size is 3 (that of --batch-size)",)),
    "a teacher in shards": ((*SEMI, "--shard"), ("--shard is given", "Leave out one of them")),
    "a stream": ((*SEMI, "--dataset", "hf", "--data-dir", "{}/parquet", "--streaming", "--num-classes", 8),
                 ("with --streaming", "Leave out one of the two")),
    "all images labelled": ((*SEMI, "--dataset", "folder", "--data-dir", "{}/data", "--train-count", 6),
                            ("all 6 images are used with masks",)),
    "a folder of labelled images": (("--model", "{}/model", "--semi-supervised", "fixmatch", "--unlabelled", "{}/data/images/train",
                                     "--dataset", "folder", "--data-dir", "{}/data", "--train-count", 6),
                                    ("all its images are also in", "a folder of other images")),
    "thresholds of classes, all zero": ((*SEMI, "--class-thresholds", "--confidence-threshold", 0), ("--class-thresholds lowers",)),
    "a stream of the rest": ((*SEMI, "--unlabelled-streaming"), ("--unlabelled is rest with --unlabelled-streaming", "parquet")),
    "a stream that nothing reads": (("--model", "{}/model", "--unlabelled-streaming"), ("--unlabelled-streaming is True",)),
    "a stream that is not there": (("--model", "{}/model", "--semi-supervised", "fixmatch", "--unlabelled", "{}/gone",
                                    "--unlabelled-streaming"), ("{}/gone",)),
    "a folder that is not there": (("--model", "{}/model", "--semi-supervised", "fixmatch", "--unlabelled", "{}/gone"),
                                   ("--unlabelled is {}/gone, which is not a folder",)),
}  # fmt: skip
EVALUATE = {
    "not fine-tuned": (("--model", "{}/model"), ("fine-tune it first",)),
    "no such folder": (("--model", "{}/gone"), ("no model folder {}/gone",)),
    "a data folder and no data set": (("--model", "{}/tuned", "--data-dir", "{}/data"), ("--data-dir is {}/data", "Give --dataset folder")),
    "missing split": (("--model", "{}/tuned", "--split", "dev"), ("--split is dev; expected one of train, val, test. Choose one of them",)),
    "no test split": (("--model", "{}/tuned", "--dataset", "folder", "--data-dir", "{}/data"),
                      ("--split is test; expected one of train, val. Choose one of them",)),
    "no splits": (("--model", "{}/tuned", "--dataset", "folder", "--data-dir", "{}/pictures"),
                  ("--split is test; expected train, the only split of the data. Choose it if the model was not trained on it, or add a",)),
    "unknown class": (("--model", "{}/tuned", "--score-classes", "skyy", "--dataset", "camvid"), ("'skyy'", "sky?")),
    "a part of the training split": (("--train-count", 4), ("--train-count is not an option", "All images of --split are measured")),
    "the training split": (("--train-split", "val"), ("--train-split is not an option", "Give --split")),
    "a window of whole images": (("--window", 64), ("--window is 64", "Give --mode slide")),
    "other classes": (("--model", "{}/tuned", "--dataset", "folder", "--data-dir", "{}/data", "--split", "val", "--num-classes", 9),
                      ("--model {}/tuned, trained on synthetic, train, has 8 classes", "expected the 9 classes")),
    "no masks": (("--model", "{}/tuned", "--dataset", "folder", "--data-dir", "{}/pictures", "--split", "train"), ("labelled images",)),
    "unknown precision": (("--model", "{}/tuned", "--mixed-precision", "fp8"), ("'fp8'", "bf16")),
    "unknown mode": (("--model", "{}/tuned", "--mode", "slid"), ("'slid'", "whole")),
    "scale zero": (("--model", "{}/tuned", "--scales", 0), ("--scales is 0.0", "above 0")),
}  # fmt: skip
RECIPES = {"pretrain": PRETRAIN, "finetune": FINETUNE, "evaluate_model": EVALUATE}
CASES = [(recipe, case) for recipe, cases in RECIPES.items() for case in cases]


@pytest.mark.parametrize(("recipe", "model"), [("pretrain", None), ("finetune", "model"), ("evaluate_model", "tuned")])
def test_a_missing_token_is_reported_before_the_data(places, tmp_path, monkeypatch, recipe, model):
    """Data that cannot be opened is not reported: the token is checked first."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    flags = ("--dataset", "camvid", "--push-to-hub", "org/name", *(("--model", places / model) if model else ()))
    assert "there is no Hugging Face token" in rejected(recipe, tmp_path / "out", *flags)


@pytest.mark.parametrize(("recipe", "case"), CASES)
def test_wrong_flags(places, tmp_path, recipe, case):
    """The error names the option or file, its value, and what was expected or what to do."""
    flags, says = RECIPES[recipe][case]
    flags = [flag.format(places) if isinstance(flag, str) else flag for flag in flags]
    message = rejected(recipe, tmp_path / "out", *flags)
    assert all(part.format(places).lower() in message.lower() for part in says), message


# -- faults in the files -------------------------------------------------------------------------------------------------------


def with_id(value: int):
    """Write an id into a pixel of a mask."""

    def damage(path):
        mask = np.array(Image.open(path)).astype(np.uint16 if value > 255 else np.uint8)
        mask[5, 5] = value
        Image.fromarray(mask).save(path)

    return damage


POINTER = LFS_POINTER + b".com/spec/v1\noid sha256:1f\nsize 9\n"
DAMAGES = {  # folder of the file 2.png, what happens to it, and the message behind the file's name
    "truncated": ("images", lambda path: path.write_bytes(path.read_bytes()[:1000]), " cannot be read"),
    "no bytes": ("images", lambda path: path.write_bytes(b""), " is empty. Replace it"),
    "a pointer": ("images", lambda path: path.write_bytes(POINTER), " is a Git LFS pointer. Run `git lfs pull`"),
    "text": ("images", lambda path: path.write_text("I am no picture"), " cannot be read"),
    "text for a mask": ("masks", lambda path: path.write_text("I am no mask"), " cannot be read"),
    "no bytes for a mask": ("masks", lambda path: path.write_bytes(b""), " is empty. Replace it"),
    "a pointer for a mask": ("masks", lambda path: path.write_bytes(POINTER), " is a Git LFS pointer. Run `git lfs pull`"),
    "a mask of another size": ("masks", lambda path: Image.new("L", (30, 20)).save(path), " is 30x20"),
    "an id of no class": ("masks", with_id(77), " holds the ids [77]"),
    "an id of 16 bits": ("masks", with_id(300), " holds the ids [300]"),
    "colors": ("masks", lambda path: Image.new("RGB", (64, 48), "red").save(path), " has mode RGB"),
}


def folder_flags(root, *more):
    return (*FOLDER, "--data-dir", root, "--num-classes", 8, "--val-split", "none", *more)


@pytest.mark.parametrize("case", DAMAGES)
def test_bad_file_is_named_and_may_be_skipped(tmp_path, capsys, case):
    """The message has the file with its value or size; --max-bad-images 1 continues without it, which is logged once."""
    root = write_folder(tmp_path / "data", splits=("train",))
    part, damage, says = DAMAGES[case]
    damage(root / part / "train" / "2.png")
    message = harness.rejected("pretrain", *folder_flags(root), "--output-dir", tmp_path / "out")
    mask = "mask " * (part == "masks")
    assert f"{mask}{root / part / 'train' / '2.png'}{says}" in message and "--max-bad-images" in message and "1 of the 6" in message
    capsys.readouterr()
    harness.run("pretrain", *folder_flags(root, "--max-bad-images", 1), "--output-dir", tmp_path / "out", pictures=False)
    shown = capsys.readouterr().out
    assert shown.count("skipped: ") == 1 and "train/2.png" in shown


def test_masks_of_rows_are_named_once():
    """A row has no file: "the mask of row 1", with the words before it written once."""
    mask = np.full((48, 64), 77, dtype=np.uint8)
    image = Image.new("RGB", (64, 48))
    rows = [{"image": image, "mask": Image.fromarray(mask), "name": "a"}]
    with pytest.raises(BadSample, match=r"^the mask of row 0 of x/train holds the ids \[77\]"):
        SegmentationData(rows, ("a", "b"), "x", "train").read(0)


@pytest.mark.parametrize(("classes", "says"), [([], "--classes has 0 names; expected 1 to 255"), (["a", "a"], "--classes repeats .a.")])
def test_numbers_and_repeats_of_class_names(classes, says):
    """Each fault has its own sentence."""
    with pytest.raises(ValueError, match=says):
        class_names(classes, None)


def test_more_bad_files_than_allowed(tmp_path):
    """Two bad files and a limit of one: rejected, with the number."""
    root = write_folder(tmp_path / "data", splits=("train",))
    for name in "12":
        (root / "images" / "train" / f"{name}.png").write_text("no picture")
    message = harness.rejected("pretrain", *folder_flags(root, "--max-bad-images", 1), "--output-dir", tmp_path / "out")
    assert "2 of the 6" in message and "--max-bad-images is 1" in message


def test_bad_unlabelled_image_is_found_before_the_first_step(tmp_path):
    """Among the images that lost their labels, and where no labels are used at all."""
    root = write_folder(tmp_path / "data", splits=("train",))
    rest = ("--train-count", 2, "--unlabelled", "rest")
    for more in (rest, ("--losses", "g+l"), ("--losses", "g+l", *rest)):
        for path in (root / "images" / "train").iterdir():
            keep = path.read_bytes()
            path.write_bytes(keep[:900])
            out = tmp_path / f"out{path.stem}"
            message = harness.rejected("pretrain", *folder_flags(root, *more), "--output-dir", out)
            assert f"train/{path.name}" in message and not (out / "log.jsonl").exists()
            path.write_bytes(keep)


def test_bad_held_out_image_is_found_before_the_first_step(tmp_path, places):
    """Not after a night of training, when the held-out split is scored."""
    root = write_folder(tmp_path / "data")
    (root / "masks" / "val" / "3.png").write_text("no mask")
    flags = (*FOLDER[FOLDER.index("--dataset") :], "--data-dir", root, "--num-classes", 8)
    message = harness.rejected("finetune", "--model", places / "model", *flags, "--output-dir", tmp_path / "b")
    assert "masks/val/3.png" in message and not (tmp_path / "b" / "log.jsonl").exists()


def test_camvid_faults_are_named(tmp_path, real_data):
    """On real files: a list that names a missing image, an image without its mask, a label outside the 11 classes."""
    source, root = real_data / "CamVid", tmp_path / "CamVid"
    lines = (source / "train.txt").read_text().splitlines()[:4]
    for line in lines:
        for name in line.split():
            part, file = name.split("/")[-2:]
            (root / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part / file, root / part / file)
    (root / "train.txt").write_text("\n".join(lines))
    flags = (*harness.TINY, "--dataset", "camvid", "--data-dir", root, "--batch-size", 2, "--dataloader-num-workers", 0, "--max-steps", 1,
             "--val-split", "none")  # fmt: skip
    image, mask = (root.joinpath(*name.split("/")[-2:]) for name in lines[2].split())

    def complaint() -> str:
        return harness.rejected("pretrain", *flags, "--output-dir", tmp_path / "out")

    keep = mask.read_bytes()
    labels = np.array(Image.open(mask))
    labels[0, 0] = 12
    Image.fromarray(labels).save(mask)
    assert mask.name in complaint() and "[12]" in complaint()
    mask.unlink()
    assert image.name in complaint() and "no mask" in complaint()
    mask.write_bytes(keep)
    image.unlink()
    assert image.name in complaint() and "do not exist" in complaint()
    assert "--train-split is 'test'" in harness.rejected("pretrain", *flags, "--train-split", "test", "--output-dir", tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 2])
def test_file_that_goes_bad_during_the_run(tmp_path, workers):
    """After the check, a file breaks: the next readable one takes its place and it is counted; beyond the limit the run ends."""
    root = write_folder(tmp_path / "data", splits=("train",))
    data = load_data("folder", "train", root, num_classes=8)
    (root / "images" / "train" / "2.png").write_text("gone bad")
    order = SamplingPlan(tuple(range(6)), (), 4, 4, 0)
    ready = TrainingImages(data, None, TrainView(32, 32), 0, order)
    accelerator = harness.fresh_accelerator()
    given = harness.options(max_steps=3, dataloader_num_workers=workers, logging_steps=1)
    for out in ("allowed", "rejected"):
        (tmp_path / out).mkdir()
    harness.fit(harness.finetuning(), ready, given, tmp_path / "allowed", accelerator, max_bad_images=1)
    names = [name for batch in ready.batches(0, 3) for name in batch["name"]]
    assert "2" not in names and len(names) == 12 and names.count("3") == 4
    with pytest.raises(ValueError, match=r"--max-bad-images is 0 and 1 image\(s\) cannot be read.*train/2\.png"):
        harness.fit(harness.finetuning(), ready, given, tmp_path / "rejected", accelerator, max_bad_images=0)


# -- faults while it runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_divergence_ends_in_a_sentence_and_keeps_the_last_checkpoint(tmp_path, places, recipe):
    """An absurd learning rate: the step and the samples are named; the checkpoint before is whole and finite, no model is published."""
    model = ("--model", places / "model") if recipe == "finetune" else ()
    flags = (*BASE[recipe][:-1], 30, "--learning-rate", 1e30, "--save-steps", 1, *model)
    message = harness.rejected(recipe, *flags, "--output-dir", tmp_path / "out")
    assert "gave loss" in message and "train_0" in message and "Lower --learning-rate" in message
    newest = checkpoint_folder.complete(tmp_path / "out")[-1]
    assert f"of step {int(newest.name[5:])} is saved" in message
    saved = load_file(newest / "method.safetensors")
    assert all(np.isfinite(value.numpy()).all() for name, value in saved.items() if "running" not in name)
    assert not (tmp_path / "out" / "model.safetensors").exists()


# -- in processes of their own -------------------------------------------------------------------------------------------------


def test_process_ends_with_status_one_and_one_line(recipe, tmp_path):
    """Seen from a shell: the sentence is the last line of standard error, nothing else is there, no traceback."""
    done = recipe("pretrain", "--backbone", "resnet5O", "--output-dir", tmp_path / "out", check=False, timeout=600)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error: --backbone is 'resnet5O'")
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_broken_masks_where_classes_are_found_in_them(tmp_path):
    """Without --classes the masks are searched: one that cannot be read, or holds colors, is named by the check and can be skipped."""
    root = write_folder(tmp_path / "data", splits=("train",))
    (root / "masks" / "train" / "1.png").write_text("no image")
    Image.new("RGB", (64, 48), "red").save(root / "masks" / "train" / "2.png")
    flags = (*FOLDER, "--data-dir", root, "--val-split", "none")
    message = harness.rejected("pretrain", *flags, "--output-dir", tmp_path / "a")
    assert "2 of the 6 samples" in message and "1.png" in message
    harness.run("pretrain", *flags, "--max-bad-images", 2, "--output-dir", tmp_path / "a", pictures=False)


def test_a_family_without_gradient_checkpointing(tmp_path):
    """timm asserts; the recipe says which backbone has none."""
    flags = ("--backbone", "inception_v3", "--image-size", 96, "--decoder-channels", 16, *harness.SHORT, "--val-split", "none")
    message = harness.rejected("pretrain", *flags, "--gradient-checkpointing", "--output-dir", tmp_path / "a")
    assert "inception_v3 has no gradient checkpointing" in message


def test_scored_classes_that_do_not_occur(tmp_path, places):
    """A mean over absent classes is no number."""
    mask = np.zeros((48, 64), np.uint8)
    for part, picture in (("images", Image.new("RGB", (64, 48))), ("masks", Image.fromarray(mask))):
        (tmp_path / "data" / part / "val").mkdir(parents=True)
        picture.save(tmp_path / "data" / part / "val" / "0.png")
    config = json.loads((places / "tuned" / "config.json").read_text())
    names = [config["id2label"][str(i)] for i in range(8)]
    data = ("--dataset", "folder", "--data-dir", tmp_path / "data", "--split", "val", "--classes", *names)
    flags = ("--model", places / "tuned", *data, "--score-classes", names[5], "--output-dir", tmp_path / "b")
    message = harness.rejected("evaluate_model", *flags)
    assert f"--score-classes is {names[5]}" in message

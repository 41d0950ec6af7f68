"""`--unlabelled NAME --unlabelled-streaming`: few stored labelled images, and a stream of images without masks beside them."""

import datasets
import harness
import pytest
import test_recipes
import test_stream
import torch

from mscl_hf.config import DataConfig
from mscl_hf.data import open_training_data
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.training.log import read_log
from mscl_hf.transforms.unlabelled_view import SemiSupervisedView
from mscl_hf.transforms.views import TrainView

LABELLED, ADDED = 4, 8


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(test_stream.stream, "SHUFFLED_ROWS", 8)
    monkeypatch.setattr(test_stream.stream, "LEAST_BLOCK", 8)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def mixed(tmp_path):
    root = test_stream.write(tmp_path / "stream", test_stream.EQUAL)
    view = SemiSupervisedView(4, 4, strong_views=1, cutmix=0.5)
    options = DataConfig(dataset="synthetic", train_count=LABELLED, image_cache_gb=0)
    total = LABELLED + ADDED
    return open_training_data(options, view, total, 3, unlabelled=str(root), unlabelled_streaming=True, labelled_share=LABELLED / total)


def test_labelled_samples_are_those_of_plain_fine_tuning(mixed):
    """They come first; the others are rows of the stream without a mask, each once in a pass."""
    plain = TrainingImages(mixed.labelled, None, TrainView(4, 4), 3, SamplingPlan((0, 1, 2, 3), (), LABELLED, LABELLED, 3))
    names = []
    for ours, theirs in zip(mixed.batches(0, 10), plain.batches(0, 10), strict=True):
        assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["mask"], theirs["mask"])
        assert ours["name"][:LABELLED] == theirs["name"] and ours["labelled"].tolist() == [0, 1, 2, 3]
        assert len(ours["weak"]) == len(ours["strong1"]) == len(ours["boxes"]) == ADDED
        names += ours["name"][LABELLED:]
    assert len(set(names)) == len(names) == sum(test_stream.EQUAL)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_processes_workers_and_first_steps_change_no_batch(mixed, workers):
    """Two processes together have the samples of one, and a run that starts at step 2 those of step 2."""
    expected = list(mixed.batches(0, 4))
    for rank in range(2):
        for ours, whole in zip(mixed.batches(2, 4, rank, 2, workers), expected[2:], strict=True):
            for key in ("image", "mask", "weak", "strong1", "boxes", "inside", "draws"):
                assert torch.equal(ours[key], whole[key][rank::2]), key


@pytest.mark.parametrize("name", ["fixmatch", "unimatch_v2"])
def test_fine_tuning_with_a_stream(tmp_path, capsys, name):
    """The whole command: checks and pictures use the first rows of the stream, and the card names it."""
    root = test_recipes.write_parquet(tmp_path / "stream", count=12)
    quiet = {"draw_training": lambda *_: None, "draw_features": lambda *_: None}
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--val-split", "none", "--output-dir", tmp_path / "model",
                **quiet)  # fmt: skip
    flags = ("--model", tmp_path / "model", "--unlabelled", root, "--unlabelled-streaming", "--semi-supervised", name)
    harness.run("finetune", *harness.SHORT, *flags, "--max-steps", 3, "--val-split", "none", "--output-dir", tmp_path / "out")
    assert "fine-tuning on 8 masks and a stream of images without masks" in capsys.readouterr().out
    assert "| images without labels | a stream |" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "pseudo_labels.png").is_file()
    assert any("pseudo_label_share" in row for row in read_log(tmp_path / "out" / "log.jsonl"))

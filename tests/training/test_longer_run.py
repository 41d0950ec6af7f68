"""What the recipes print at their end: the length of a real run, and a next command that finds masks to measure on."""


import harness
import pytest
from test_size_checks import mask_of, write

from mscl_hf.config import DataConfig, FinetuneConfig, FinetuneRun, TrainingConfig
from mscl_hf.data import load_data, open_held_out
from mscl_hf.training import longer_run
from mscl_hf.training.log import write_log


@pytest.mark.parametrize(
    "dataset, steps, images, words",
    [("folder", 300, 100, "300 steps (48 epochs) are a quick look; --max-steps 5000 or more are a real run, of 0.83 hours"),
     ("coco", 300, None, "300 steps are a quick look"), ("folder", 301, 100, None), ("synthetic", 300, 100, None)],
)  # fmt: skip
def test_length_of_a_real_run(tmp_path, dataset, steps, images, words):
    """Epochs from the number of images, hours from the mean time of an image; longer runs and published data get no such advice."""
    write_log(tmp_path, [{"step": 0}, {"step": 10, "images_per_second": 20.0}, {"step": 20, "images_per_second": 40.0}])
    sentences = longer_run(tmp_path, TrainingConfig(max_steps=steps, batch_size=16), images, dataset)
    assert len(sentences) == (words is not None) and all(words in sentence for sentence in sentences)
    assert longer_run(tmp_path / "untrained", TrainingConfig(), 100, "folder") == []


def test_the_next_command_has_a_split_with_masks(tmp_path):
    """The test split where it has masks, else the held-out one; new images where nothing is held out."""
    names = ["left", "right"]
    for split in ("train", "val"):
        write(tmp_path, split, [mask_of(40, 50)])
    options = DataConfig("folder", str(tmp_path), classes=names)

    def following(options: DataConfig, held_out) -> str:
        config = FinetuneConfig(FinetuneRun(output_dir="out"), options)
        return harness.load_recipe("finetune").next_command(held_out, config, tuple(names))

    command = f"mscl-evaluate --model out --dataset folder --data-dir {tmp_path} --classes left right"
    assert following(options, open_held_out(options, print)) == f"{command} --split val"
    assert following(options, None) == "mscl-predict --model out --images FOLDER"
    write(tmp_path, "test", [mask_of(40, 50)])
    assert following(options, None) == command
    (tmp_path / "masks" / "test" / "0.png").unlink()
    assert following(options, open_held_out(options, print)) == f"{command} --split val"
    assert following(DataConfig(), load_data("synthetic", "val", scenes=2)) == "mscl-evaluate --model out"

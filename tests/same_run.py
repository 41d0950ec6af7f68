"""Whether two folders hold the same run: newest checkpoint, published model, every logged number and score, to the last bit."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from mscl_hf.training import checkpoint_folder
from mscl_hf.training.log import read_log

SPEED = ("images_per_second", "data_wait")


def final_state(out: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint, "method/NAME" and "optimizer/NAME", and of the published model; those that there are."""
    files = [folder / f"{name}.safetensors" for folder in checkpoint_folder.complete(out)[-1:] for name in ("method", "optimizer")]
    files += [out / "model.safetensors"] if (out / "model.safetensors").exists() else []
    return {f"{file.stem}/{key}": value for file in files for key, value in load_file(file).items()}


def logged(out: Path) -> list[dict]:
    """The lines of the log without what no two runs share."""
    return [{key: value for key, value in row.items() if key not in SPEED} for row in read_log(out / "log.jsonl")]


def scores(out: Path) -> dict:
    """What was measured, without the seconds it took and the folders it was given."""
    file = out / "results.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return {key: value for key, value in found.items() if key.startswith(("mean", "overall", "per_class", "num_images"))}


def differences(out: Path, straight: Path) -> list[str]:
    """Names of what is not equal, and leaves of a save or a publication in the first. AssertionError where there is nothing to compare."""
    first, second = final_state(out), final_state(straight)
    found = sorted({*first} ^ {*second}) + [name for name in first if name in second and not torch.equal(first[name], second[name])]
    steps = [[folder.name for folder in checkpoint_folder.complete(place)[-1:]] for place in (out, straight)]
    assert second or logged(straight) or scores(straight), f"{straight} holds no run"
    found += ["results.json"] * (scores(out) != scores(straight))
    found += ["checkpoints"] * (steps[0] != steps[1]) + ["log.jsonl"] * (logged(out) != logged(straight))
    return found + [str(left) for left in out.glob("**/.tmp-*")]

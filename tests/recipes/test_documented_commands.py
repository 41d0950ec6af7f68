"""The commands in README, docs and docstrings: each is accepted by its own parser, and the chain on a folder of one's own runs."""

import configparser
import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import harness
import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from mscl_hf import cli

ROOT = harness.ROOT
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted([*(ROOT / "recipes").glob("*.py"), *(ROOT / "hub").glob("*.py")])
STARTS = re.compile(r"mscl-\w|(accelerate launch|torchrun) .*recipes/\w+\.py|python (-m )?recipes[/.]")
WITHOUT_OPTIONS = ("speed/peers.py", "speed/finetune_peers.py", "lite0-weights")  # these parse their words themselves
PLACEHOLDERS = {"N": "1", "R": "1", "...": "", "$more": "", "$data": "camvid"}  # what a reader or a loop fills in
CHAIN = {
    "mscl-data": (),
    "mscl-pretrain": ("--backbone", "test_resnet", "--pretrained", "false", "--decoder-channels", 16, "--max-steps", 2, "--batch-size", 4,
                      "--dataloader-num-workers", 0),
    "mscl-finetune": ("--max-steps", 2, "--batch-size", 4, "--dataloader-num-workers", 0, "--probe-batches", 1),
    "mscl-evaluate": (),
    "mscl-predict": (),
}  # fmt: skip


class Parsed(Exception):
    """The options of a command were accepted."""


def commands_in(path: Path) -> list[list[str]]:
    """The words of the commands in the code blocks and the code spans of a document, or in the docstring of a script."""
    text = path.read_text(encoding="utf-8")
    fence = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    if path.suffix == ".py":
        lines = text.split('"""')[1].splitlines()
    else:
        blocks = [block for language, block in fence.findall(text) if language == "bash"]
        lines = "".join(blocks).replace("\\\n", " ").splitlines() + [
            span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", fence.sub("", text))
        ]
    commands = []
    for line in filter(STARTS.search, lines):
        words = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        words.whitespace_split = True
        starts = [[]]
        for word in words:
            starts += [[]] if set(word) <= set(";&|()<>") else []
            starts[-1] += [word] if starts[-1] or "=" not in word and word not in (";", "&&", "do") else []
        commands += [words for words in starts if STARTS.match(" ".join(words))]
    return commands


def target(words: list[str]) -> tuple[Path | str, list[str]]:
    """The script or module that a command starts, and its own words. The launcher's words are checked by its own parser."""
    words = [value for word in words if (value := PLACEHOLDERS.get(word, word))]
    if words[0].startswith("mscl-"):
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        scripts = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].strip().splitlines())
        module = scripts[words[0]].partition(":")[0].replace("mscl_hf.recipes", "recipes").replace("mscl_hf.hub", "hub")
        return ROOT / f"{module.replace('.', '/')}.py", words[1:]
    if words[:3] == ["python", "-m", "recipes.benchmarks"]:
        return "recipes.benchmarks", words[3:]
    number = next(i for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py"))
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[2 : number + 1])
        assert launched.config_file is None or (ROOT / launched.config_file).is_file(), launched.config_file
    return ROOT / words[number], words[number + 1 :]


def error_of(words: list[str], monkeypatch) -> str:
    """Why a command is rejected; "" where its options are accepted. It starts, and ends as soon as they are parsed."""
    try:
        script, own = target(words)
        while "--config" in own and not (ROOT / own[own.index("--config") + 1]).is_file():  # of a run of the reader
            del own[own.index("--config") : own.index("--config") + 2]
        if own[:1] == ["lite0-weights"] or str(script).endswith(WITHOUT_OPTIONS):
            return ""
        monkeypatch.setattr(sys, "argv", [str(script), *own])
        if isinstance(script, str):
            runpy.run_module(script, run_name="__main__")
        else:
            importlib.import_module(".".join(script.relative_to(ROOT).with_suffix("").parts)).main()
    except Parsed:
        return ""
    except (SystemExit, AssertionError, KeyError, StopIteration) as error:
        return f"{type(error).__name__}: {error}"
    return "it read no options"


def test_every_command_in_the_documentation_is_accepted(monkeypatch):
    """Flags, choices and values of all commands fit the parsers that read them; configurations that they name exist."""
    parse = cli._parse

    def stop(*arguments):
        parse(*arguments)
        raise Parsed

    monkeypatch.setattr(cli, "_parse", stop)
    monkeypatch.chdir(ROOT)
    commands = [(path, words) for path in (*DOCUMENTS, *SCRIPTS) for words in commands_in(path)]
    errors = {f"{path.relative_to(ROOT)}: {shlex.join(words)}": error_of(words, monkeypatch) for path, words in commands}
    wrong = [f"{command}\n  {error}" for command, error in errors.items() if error]
    assert not wrong, "\n".join(wrong)
    assert len(errors) > 60


def test_a_wrong_command_is_found(monkeypatch, tmp_path):
    """Comments, assignments, continued lines and several commands in a line are read; a renamed flag and a missing file are errors."""
    block = "A=1 mscl-pretrain --max-steps 3 \\\n    --seed 1 && mscl-pretrain --seeed 1  # two\ntorchrun recipes/predict.py --nothing 1\n"
    (tmp_path / "page.md").write_text(f"```bash\n{block}```\nand `mscl-pretrain --method nothing`, `--no-command`, `mscl_hf`")
    commands = commands_in(tmp_path / "page.md")
    assert [words[0] for words in commands] == ["mscl-pretrain", "mscl-pretrain", "torchrun", "mscl-pretrain"]
    monkeypatch.setattr(cli, "_options_of_commands", dict)
    errors = [error_of(words, monkeypatch) for words in commands[1:]]
    assert all(name in error for name, error in zip(("--seeed", "--nothing", "--method is 'nothing'"), errors))
    assert "missing.yaml" in error_of(shlex.split("accelerate launch --config_file missing.yaml recipes/pretrain.py"), monkeypatch)


def write_scans(root: Path) -> None:
    """scans/ with ten images and eight masks, new_scans/ with two images."""
    values = np.random.default_rng(0)
    for name, count in (("scans/images", 10), ("new_scans", 2), ("scans/masks", 8)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            mask = np.repeat(np.arange(64) >= 16 + 4 * number, 48).reshape(64, 48).T.astype(np.uint8)
            image = values.integers(0, 100, (48, 64, 3), dtype=np.uint8) + 100 * mask[..., None]
            Image.fromarray(mask if "masks" in name else image).save(root / name / f"{number}.png")


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md"])
def test_the_chain_on_a_folder_of_ones_own(document, tmp_path, monkeypatch, capsys, own_caches):
    """check, pretrain, finetune, evaluate and predict run as they are printed, shortened; each names the next one. So do further commands,
    such as a second fine-tuning."""
    write_scans(tmp_path)
    monkeypatch.chdir(tmp_path)
    chain = [words for words in commands_in(ROOT / document) if words[0] in CHAIN and len(words) > 1]
    assert [words[0] for words in chain[: len(CHAIN)]] == list(CHAIN)
    following = []
    for words in chain:
        script, own = target(words)
        own = [str(ROOT / word) if word.startswith("recipes/configs/") else word for word in own]
        harness.run(script.stem, *own, *CHAIN[words[0]])
        last = capsys.readouterr().out.splitlines()[-1]
        following.append(shlex.split(last.removeprefix("next: "))[0])
    assert following[:3] == list(CHAIN)[1:4]
    outputs = {words[0]: words[words.index("--output-dir") + 1] for words in chain if "--output-dir" in words}
    scores = json.loads((tmp_path / outputs.get("mscl-evaluate", "runs/evaluate") / "results.json").read_text())
    assert scores["num_images"] == 2 and scores["split"] == "val"
    assert all((tmp_path / outputs["mscl-predict"] / kind / "1.png").is_file() for kind in ("masks", "overlays"))

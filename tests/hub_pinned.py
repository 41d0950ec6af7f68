"""Part of tests/hub_worker.py: which commits of models and data runs take and record, and what becomes of pickles on the Hub."""

import json
from pathlib import Path

from hub_routes import Repo

NAME, DATA = "org/start", "org/scenes"


def commit(hub, name: str, files: dict[str, bytes], kind: str = "model") -> str:
    """A new commit of a repository, which is made if there is none."""
    repo = hub.repos.setdefault(f"{kind}s/{name}", Repo(kind, name, False))
    large = (".safetensors", ".bin", ".parquet")
    return repo.commit("main", {path: hub.store(content, path.endswith(large)) for path, content in files.items()}, "files")


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def pinned_life(hub, folder: Path) -> dict:
    """Runs by a bare name and by NAME@COMMIT, an export, and repositories of pickles; what was seen of them."""
    import harness
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from test_recipes import write_parquet
    from test_untrusted import pickled

    from mscl_hf import MsclForPreTraining, MsclForSemanticSegmentation
    from mscl_hf.config import DataConfig, PretrainConfig, PretrainRun
    from mscl_hf.data import load_data
    from mscl_hf.export import export
    from mscl_hf.models.backbones import load_timm_weights
    from mscl_hf.models.loading import open_model, pinned
    from mscl_hf.sharing.model_folder import publish
    from mscl_hf.sharing.provenance import PROVENANCE, pin_revisions

    facts: dict = {}
    folder.mkdir()

    def made(seed: int) -> dict[str, bytes]:
        torch.manual_seed(seed)
        (folder / f"made{seed}").mkdir()
        publish(MsclForPreTraining(harness.config()), folder / f"made{seed}")
        return read(folder / f"made{seed}")

    # Two commits of a model, one of data; a run by the bare name, and one by NAME@COMMIT
    files = {1: made(1), 2: made(2)}
    commits = {number: commit(hub, NAME, content) for number, content in files.items()}
    facts["data commit"] = commit(hub, DATA, read(write_parquet(folder / "parquet", count=4)), "dataset")
    facts["commits"], facts["head"] = list(commits.values()), pinned(NAME)
    facts["by commit"] = pinned(f"{NAME}@{commits[1]}")
    short = ("--batch-size", 2, "--dataloader-num-workers", 0, "--max-steps", 1, "--val-split", "none")
    data = ("--dataset", "hf", "--data-dir", DATA, "--num-classes", 8)
    for name, model, more in (("newest", NAME, ("--train-count", 4)), ("first", f"{NAME}@{commits[1]}", data)):
        start = len(hub.log)
        harness.run("finetune", *short, *more, "--model", model, "--output-dir", folder / name, draw_training=lambda *_: None)
        facts[name] = json.loads((folder / name / PROVENANCE).read_text())["stages"][-1]
        facts[f"{name} run"] = (folder / name / "run.json").read_text()
        facts[f"{name} asked for"] = [path for _, path, _ in hub.log[start:] if f"/{NAME}/resolve/" in path]
    one, other = (open_model(MsclForPreTraining, place) for place in (f"{NAME}@{commits[1]}", str(folder / "made1")))
    facts["first weights"] = torch.equal(one.decoder.fuse[0].weight, other.decoder.fuse[0].weight)
    facts["onward"] = pin_revisions(PretrainConfig(run=PretrainRun(start_from=NAME))).run.start_from
    # Both repositories move on; what was begun does not, and what is new takes the newest
    again = (*short, *data, "--model", NAME, "--output-dir", folder / "continued")
    harness.run("finetune", *again, draw_training=lambda *_: None)
    before = (folder / "continued" / "run.json").read_text()
    commit(hub, NAME, files[1])
    facts["moved"] = commit(hub, DATA, read(write_parquet(folder / "more", count=5)), "dataset")
    harness.run("finetune", *again, "--resume", draw_training=lambda *_: None)
    records = [json.loads(text) for text in (before, (folder / "continued" / "run.json").read_text())]
    facts["continued"] = [[record[key] for key in ("model", "data_revision")] for record in records]
    facts["a new one"] = pin_revisions(PretrainConfig(data=DataConfig(dataset="hf", data_dir=DATA))).data.data_revision
    start = len(hub.log)
    export(f"{NAME}@{commits[1]}", "timm", folder / "exported")
    facts["exported asked for"] = [path for _, path, _ in hub.log[start:] if "/resolve/" in path]

    # Images that lie loose in a repository, streamed and read whole; addresses of other places
    Image.new("RGB", (64, 48), "red").save(folder / "red.png")
    loose = commit(hub, "org/loose", {f"train/{number}.png": (folder / "red.png").read_bytes() for number in range(4)}, "dataset")
    start = len(hub.log)
    data = load_data("hf", "train", "org/loose", unlabelled=True, streaming=True, revision=loose)
    facts["loose"] = [sample.image.shape for sample, _ in next(data.batches(0, 4, range(4)))]
    facts["loose asked for"] = [path for _, path, _ in hub.log[start:] if "/resolve/" in path]
    whole = load_data("hf", "train", "org/loose", unlabelled=True, revision=loose)
    facts["loose whole"] = [whole.read(number).image.shape for number in range(4)]
    facts["loose stored"] = [len(row["image"]["bytes"]) > 0 for row in data.rows()]
    start = len(hub.log)
    strays = ("org/secret@main/a.png", "org/loose-not@main/a.png", f"org/loose@{loose}/../../secret/a.png")
    facts["strays"] = [data._fetched({"bytes": None, "path": f"hf://datasets/{stray}"})["bytes"] for stray in strays]
    facts["strays asked for"] = len(hub.log) - start

    # Pickles on the Hub
    sentinel = folder / "code_was_run"
    pickled(sentinel, folder / "trap.bin")
    trap = (folder / "trap.bin").read_bytes()
    bare = {name: content for name, content in files[1].items() if not name.endswith(".safetensors")}
    index = json.dumps({"metadata": {}, "weight_map": {"trap": "pytorch_model-1.bin"}}).encode()
    facts["refused"], start = {}, len(hub.log)
    for name, more in {
        "org/pickled": {"pytorch_model.bin": trap},
        "org/shards": {"pytorch_model.bin.index.json": index, "pytorch_model-1.bin": trap},
        "org/renamed": {"model.safetensors.index.json": index, "pytorch_model-1.bin": trap},
        "org/empty": {},
    }.items():
        commit(hub, name, bare | more)
        for kind in (MsclForPreTraining, MsclForSemanticSegmentation):
            try:
                open_model(kind, name)
            except ValueError as error:
                facts["refused"][name] = str(error)
        facts["refused by a command"] = harness.refused("finetune", *short, "--model", name, "--output-dir", folder / "no")
    # Shards, which are looked at when they have been fetched
    network = MsclForPreTraining(harness.config())
    network.save_pretrained(folder / "shards", max_shard_size="200KB")
    last = max((folder / "shards").glob("*.safetensors"))
    save_file({key: value.int() for key, value in load_file(last).items()}, last, {"format": "pt"})
    commit(hub, "org/integers", read(folder / "shards"))
    try:
        open_model(MsclForPreTraining, "org/integers")
    except ValueError as error:
        facts["refused"]["org/integers"] = str(error)
    timm_name = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    commit(hub, timm_name, {"pytorch_model.bin": trap})
    try:
        load_timm_weights(MsclForPreTraining(harness.config()))
    except ValueError as error:
        facts["refused"][timm_name] = str(error)
    facts["asked"] = [(method, path) for method, path, _ in hub.log[start:]]
    facts["code was run"] = sentinel.exists()
    return facts

"""Part of tests/hub_worker.py: the commits of models and data that runs use and record, and pickles on the Hub."""

import json
from pathlib import Path

from hub_routes import Repo

NAME, DATA = "org/start", "org/scenes"


def commit(hub, name: str, files: dict[str, bytes], repo_type: str = "model") -> str:
    """Commit files to a repository, which is created if missing; return the commit."""
    repo = hub.repos.setdefault(f"{repo_type}s/{name}", Repo(repo_type, name, False))
    large = (".safetensors", ".bin", ".parquet")
    return repo.commit("main", {path: hub.store(content, path.endswith(large)) for path, content in files.items()}, "files")


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def pinned_life(hub, folder: Path) -> dict:
    """Run recipes with NAME and NAME@COMMIT, an export, and untrusted repositories; return facts for the tests."""
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
    from mscl_hf.models.loading import open_model, pinned
    from mscl_hf.models.timm_weights import load_timm_weights
    from mscl_hf.sharing.model_folder import write_model
    from mscl_hf.sharing.provenance import PROVENANCE, pin_revisions

    facts: dict = {}
    folder.mkdir()

    def save_new(seed: int) -> dict[str, bytes]:
        torch.manual_seed(seed)
        (folder / f"made{seed}").mkdir()
        write_model(MsclForPreTraining(harness.config()), folder / f"made{seed}")
        return read(folder / f"made{seed}")

    # Two commits of a model, one of data; a run by the bare name, and one by NAME@COMMIT
    files = {1: save_new(1), 2: save_new(2)}
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
        facts[f"{name} requests"] = [path for _, path, _ in hub.log[start:] if f"/{NAME}/resolve/" in path]
    one, other = (open_model(MsclForPreTraining, place) for place in (f"{NAME}@{commits[1]}", str(folder / "made1")))
    facts["first weights"] = torch.equal(one.decoder.fuse[0].weight, other.decoder.fuse[0].weight)
    facts["start_from"] = pin_revisions(PretrainConfig(run=PretrainRun(start_from=NAME))).run.start_from
    # Both repositories get a new commit: a resumed run keeps the old ones, a new run takes the newest
    again = (*short, *data, "--model", NAME, "--output-dir", folder / "continued")
    harness.run("finetune", *again, draw_training=lambda *_: None)
    before = (folder / "continued" / "run.json").read_text()
    commit(hub, NAME, files[1])
    facts["moved"] = commit(hub, DATA, read(write_parquet(folder / "more", count=5)), "dataset")
    harness.run("finetune", *again, "--resume", draw_training=lambda *_: None)
    records = [json.loads(text) for text in (before, (folder / "continued" / "run.json").read_text())]
    facts["continued"] = [[record[key] for key in ("model", "data_revision")] for record in records]
    facts["new run"] = pin_revisions(PretrainConfig(data=DataConfig(dataset="hf", data_dir=DATA))).data.data_revision
    start = len(hub.log)
    export(f"{NAME}@{commits[1]}", "timm", folder / "exported")
    facts["exported requests"] = [path for _, path, _ in hub.log[start:] if "/resolve/" in path]

    # Image files of a repository, streamed and downloaded; URLs of other repositories
    Image.new("RGB", (64, 48), "red").save(folder / "red.png")
    loose = commit(hub, "org/loose", {f"train/{number}.png": (folder / "red.png").read_bytes() for number in range(4)}, "dataset")
    start = len(hub.log)
    data = load_data("hf", "train", "org/loose", unlabelled=True, streaming=True, data_revision=loose)
    facts["loose"] = [sample.image.shape for sample, _ in next(data.batches(0, 4, range(4)))]
    facts["loose requests"] = [path for _, path, _ in hub.log[start:] if "/resolve/" in path]
    whole = load_data("hf", "train", "org/loose", unlabelled=True, data_revision=loose)
    facts["loose whole"] = [whole.read(number).image.shape for number in range(4)]
    facts["loose stored"] = [len(row["image"]["bytes"]) > 0 for row in data.rows()]
    start = len(hub.log)
    foreign = ("org/secret@main/a.png", "org/loose-not@main/a.png", f"org/loose@{loose}/../../secret/a.png")
    facts["foreign"] = [data._fetched({"bytes": None, "path": f"hf://datasets/{url}"})["bytes"] for url in foreign]
    facts["foreign requests"] = len(hub.log) - start

    # Pickles on the Hub
    sentinel = folder / "code_was_run"
    pickled(sentinel, folder / "trap.bin")
    trap = (folder / "trap.bin").read_bytes()
    bare = {name: content for name, content in files[1].items() if not name.endswith(".safetensors")}
    index = json.dumps({"metadata": {}, "weight_map": {"trap": "pytorch_model-1.bin"}}).encode()
    facts["rejected"], start = {}, len(hub.log)
    for name, more in {
        "org/pickled": {"pytorch_model.bin": trap},
        "org/shards": {"pytorch_model.bin.index.json": index, "pytorch_model-1.bin": trap},
        "org/renamed": {"model.safetensors.index.json": index, "pytorch_model-1.bin": trap},
        "org/empty": {},
    }.items():
        commit(hub, name, bare | more)
        for model_cls in (MsclForPreTraining, MsclForSemanticSegmentation):
            try:
                open_model(model_cls, name)
            except ValueError as error:
                facts["rejected"][name] = str(error)
        facts["rejected by a command"] = harness.rejected("finetune", *short, "--model", name, "--output-dir", folder / "no")
    # Shards, which are checked after the download
    network = MsclForPreTraining(harness.config())
    network.save_pretrained(folder / "shards", max_shard_size="200KB")
    last = max((folder / "shards").glob("*.safetensors"))
    save_file({key: value.int() for key, value in load_file(last).items()}, last, {"format": "pt"})
    commit(hub, "org/integers", read(folder / "shards"))
    try:
        open_model(MsclForPreTraining, "org/integers")
    except ValueError as error:
        facts["rejected"]["org/integers"] = str(error)
    timm_name = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    commit(hub, timm_name, {"pytorch_model.bin": trap})
    try:
        load_timm_weights(MsclForPreTraining(harness.config()))
    except ValueError as error:
        facts["rejected"][timm_name] = str(error)
    # The same repository with weights: a teacher of the Hub
    weights = Path(harness.weights_file()).read_bytes()
    facts["teacher commit"] = f"{timm_name}@{commit(hub, timm_name, {'model.safetensors': weights})}"
    harness.run("pretrain", *harness.TINY, *short, "--train-count", 4, "--method", "distill", "--teacher", "test_resnet",
                "--teacher-pretrained", "--output-dir", folder / "student", draw_training=lambda *_: None,
                draw_features=lambda *_: None)  # fmt: skip
    stage = json.loads((folder / "student" / PROVENANCE).read_text())["stages"][-1]
    facts["teacher"] = [stage["facts"]["teacher"], stage["facts"]["license of the teacher"]]
    facts["requests"] = [(method, path) for method, path, _ in hub.log[start:]]
    facts["code was run"] = sentinel.exists()
    return facts

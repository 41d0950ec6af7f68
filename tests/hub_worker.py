"""Push and load a model in a process that uses tests/minihub.py as the Hub; facts for the tests are written to FOLDER/facts.json.

    python tests/hub_worker.py FOLDER            # all steps with a server
    python tests/hub_worker.py FOLDER REVISION   # then offline: load the newest revision and this one from the cache
"""

import contextlib
import json
import os
import runpy
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("recipes", "models")]  # their helpers are imported
NAME = "org/net"


def digest(tensor) -> str:
    import hashlib

    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def mscl_push(*arguments: str) -> None:
    sys.argv = ["mscl-push", *arguments]
    runpy.run_path(str(ROOT / "hub" / "push.py"), run_name="__main__")


def pixels():
    import torch

    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def logits(network) -> str:
    import torch

    with torch.no_grad():
        return digest(network.eval()(pixels()).logits)


def main(hub, facts: dict) -> None:
    import evaluate
    import numpy as np
    import timm
    import torch
    from hub_pinned import pinned_life
    from huggingface_hub import HfApi, constants, snapshot_download
    from PIL import Image
    from transformers import AutoBackbone, AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor, pipeline

    from mscl_hf import MsclBackbone, MsclForSemanticSegmentation
    from mscl_hf.config import HubConfig
    from mscl_hf.export import export
    from mscl_hf.models.backbones import build_config
    from mscl_hf.sharing.upload import push_result

    api = HfApi()

    def write(folder: Path, seed: int) -> str:
        torch.manual_seed(seed)
        network = MsclForSemanticSegmentation(build_config("test_resnet", image_size=64, decoder_channels=16, num_labels=3))
        network.save_pretrained(folder)
        SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: image-segmentation\n---\n")
        (folder / "run.json").write_text('{"data_dir": "/home/somebody"}')
        return logits(network)

    def load(name: str = NAME, **options) -> str:
        return logits(MsclForSemanticSegmentation.from_pretrained(name, **options))

    def head(name: str = NAME, repo_type: str = "model") -> str:
        return hub.repo(name, repo_type).branches["main"]

    # Push, load, use
    run = FOLDER / "run"
    facts["first"] = write(run, seed=0)
    push_result(run, HubConfig(NAME))
    facts["files"] = sorted(hub.repo(NAME).files("main"))
    facts["first_sha"], start = head(), len(hub.log)
    facts["loaded"] = load()
    facts["requested"] = [path for method, path, _ in hub.log[start:] if "/resolve/" in path]
    facts["auto"] = logits(AutoModelForSemanticSegmentation.from_pretrained(NAME))
    facts["processor"] = type(AutoImageProcessor.from_pretrained(NAME)).__name__
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    segments = pipeline("image-segmentation", model=NAME)(image)
    facts["segments"] = [[part["label"], list(part["mask"].size), int(np.count_nonzero(part["mask"]))] for part in segments]
    backbone = AutoBackbone.from_pretrained(NAME).eval()
    own = MsclForSemanticSegmentation.from_pretrained(NAME).backbone.eval()
    with torch.no_grad():
        facts["feature_maps"] = [digest(feature_map) for feature_map in backbone(pixels()).feature_maps]
        facts["own_feature_maps"] = [digest(feature_map) for feature_map in own(pixels()).feature_maps]
    facts["channels"] = [list(backbone.channels), [feature_map.shape[1] for feature_map in own(pixels()).feature_maps]]

    # Push the same files, other weights; load the first commit
    push_result(run, HubConfig(NAME))
    facts["after_same"] = head()
    facts["second"] = write(run, seed=1)
    push_result(run, HubConfig(NAME))
    facts["commits"] = [hub.repo(NAME).commits[head()]["parent"], len(hub.repo(NAME).commits)]
    facts["main_now"], facts["pinned"] = load(), load(revision=facts["first_sha"])

    # main moves during a load, between its configuration and its weights
    def move(_path: str) -> None:
        hub.repo(NAME).commit("main", hub.repo(NAME).files(facts["first_sha"]), "back to the first")

    hub.fail("GET", f"/{NAME}/resolve/.*/model.safetensors", move)
    facts["before_move"] = head()
    facts["while_moving"] = load(cache_dir=FOLDER / "moving")
    facts["moved"] = head() != facts["before_move"]
    facts["snapshots"] = [path.name for path in (FOLDER / "moving").glob("models--*/snapshots/*")]
    facts["after_move"] = load(cache_dir=FOLDER / "moving")

    # Downloads: interrupted, too short, and of the right length with wrong bytes
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # by default 10 MB; whole chunks are kept
    hub.fail("GET", f"/{NAME}/resolve/.*/model.safetensors", "drop_midway")
    start = len(hub.log)
    facts["after_cut"] = load(cache_dir=FOLDER / "cut")
    facts["continued"] = [answer for method, path, answer in hub.log[start:] if method == "GET" and "model.safetensors" in path]
    blob = hub.blob(hub.repo(NAME).files("main")["model.safetensors"]["sha256"])
    weights = blob.read_bytes()
    blob.write_bytes(weights[:-100])
    with contextlib.suppress(FileNotFoundError):
        try:
            facts["short"] = load(cache_dir=FOLDER / "short")
        except OSError as error:
            facts["short"] = f"{type(error).__name__}: {error}"
    facts["short_cached"] = [path.name for path in (FOLDER / "short").glob("models--*/snapshots/*/model.safetensors")]
    blob.write_bytes(weights)
    facts["short_repaired"] = load(cache_dir=FOLDER / "short")
    blob.write_bytes(weights[:-4] + b"\0\0\1\1")
    snapshot_download(NAME, cache_dir=FOLDER / "wrong")
    facts["wrong"] = [file["path"] for file in api.verify_repo_checksums(NAME, cache_dir=FOLDER / "wrong").mismatches]
    blob.write_bytes(weights)

    # Spaces: the metric and the demo
    mscl_push("--what", "metric", "--push-to-hub", "org/mean_iou")
    mscl_push("--what", "space", "--push-to-hub", "org/demo")
    facts["spaces"] = {name: sorted(hub.repo(name, "space").files("main")) for name in ("org/mean_iou", "org/demo")}
    facts["space_folder"] = snapshot_download("org/demo", repo_type="space", local_dir=FOLDER / "space")
    metric = evaluate.load("org/mean_iou")
    metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
    facts["metric"] = [metric.__class__.__module__, float(metric.compute(num_labels=2, ignore_index=255)["mean_iou"])]

    # timm
    torch.manual_seed(2)
    export(str(FOLDER / "run"), "timm", FOLDER / "timm")
    model = MsclBackbone.from_pretrained(FOLDER / "run").timm_model.eval()
    mscl_push("--folder", str(FOLDER / "timm"), "--push-to-hub", "org/timm")
    loaded = timm.create_model("hf-hub:org/timm", pretrained=True).eval()
    with torch.no_grad():
        facts["timm"] = [digest(model(pixels())), digest(loaded(pixels()))]

    facts["commits of runs"] = pinned_life(hub, FOLDER / "pinned")


def offline(facts: dict, revision: str) -> None:
    import mscl_hf
    from mscl_hf import MsclForSemanticSegmentation

    facts["package"] = mscl_hf.__file__
    facts["from_cache"] = logits(MsclForSemanticSegmentation.from_pretrained(NAME))
    facts["first_from_cache"] = logits(MsclForSemanticSegmentation.from_pretrained(NAME, revision=revision))


if __name__ == "__main__":
    collected: dict = {}
    if sys.argv[2:]:
        offline(collected, revision=sys.argv[2])
    else:
        from minihub import TOKEN, Minihub

        with Minihub(FOLDER / "hub") as server:
            os.environ |= {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}  # before anything of Hugging Face is imported
            main(server, collected)
    (FOLDER / "facts.json").write_text(json.dumps(collected))

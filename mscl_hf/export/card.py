"""README.md of an exported folder: content, code that opens it, origin and license."""

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ..models.loading import split_revision
from ..records.files import hub_folder
from ..sharing.model_card import cell, license_text
from ..sharing.provenance import OPTIONAL, read_provenance
from ..sharing.upload import NAME_PLACEHOLDER

# {target: (library as the Hub names it, description, code that opens the folder)}.
DESCRIPTIONS = {
    "timm": ("timm", "The backbone of a segmentation network, without a classifier.", f"""import timm

backbone = timm.create_model("hf-hub:{NAME_PLACEHOLDER}", pretrained=True, features_only=True)  # or "local-dir:DIR"
classifier = timm.create_model("hf-hub:{NAME_PLACEHOLDER}", pretrained=True, num_classes=10)  # new classifier, to be fine-tuned"""),
    "smp": ("segmentation-models-pytorch", "Weights for segmentation_models_pytorch; load.py builds the model.", """import runpy

model = runpy.run_path("load.py")["model"]"""),
    "torchvision": (None, "Weights for torchvision; load.py builds the model.", """import runpy

model = runpy.run_path("load.py")["model"]"""),
    "onnx": ("onnx", "A segmentation network in ONNX: the logits have the size of the images.", """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {"pixel_values": pixels})[0]  # (B, 3, H, W) float32 -> (B, classes, H, W)"""),
    "torch": (None, "A segmentation network as a program of torch.export: the logits have the size of the images.", """import torch

program = torch.export.load("model.pt2").module()
logits = program(pixels)  # (B, 3, H, W) float32 -> (B, classes, H, W)"""),
}  # fmt: skip


def export_card(config: PreTrainedConfig, name: str, to: str, has_classifier: bool, summary: str) -> ModelCard:
    """Return the card of an export of the model `name`, a folder or Hub name, with the license on the card of the model.

    summary: of the export, see `export`.
    """
    library, about, code = DESCRIPTIONS[to]
    folder, revision = split_revision(name)
    readme = cached_file(folder, "README.md", revision=revision, **OPTIONAL)
    license = ModelCard.load(readme).data.license if readme else None
    data = ModelCardData(
        library_name=library, license=license, pipeline_tag="image-segmentation" if has_classifier else "image-feature-extraction",
        tags=["timm", "mscl_hf", *["transformers"] * (to == "timm")],
    )  # fmt: skip
    stages = [f"{s['stage']}: {s['facts'].get('data', '-')}; {s['facts']['budget']}" for s in read_provenance(name)["stages"]]
    labels = ", ".join(cell(config.id2label[i]) for i in range(config.num_labels)) if has_classifier else ""
    return ModelCard.from_template(
        data, template_path=str(hub_folder() / "export_card.md"), title=f"{config.backbone}, trained with mscl_hf", about=about,
        code=code.replace("(B, 3,", f"(B, {config.num_channels},"), bands=config.bands,
        mean=config.image_mean, std=config.image_std, image_range=config.image_range, labels=labels, summary=summary,
        stages=[cell(stage) for stage in stages], license=license_text(license),
    )  # fmt: skip

"""Foundation models of timm, with fewer blocks and random weights: every decoder is built, trained, saved, opened and exported."""

import pytest
import torch

from mscl_hf.export import export
from mscl_hf.models.backbones import build_config
from mscl_hf.models.decoders_mscl import DECODERS
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation

pytestmark = pytest.mark.slow
BLOCKS = {"depth": 4}
FAMILIES = {
    "vit_small_patch14_dinov2": BLOCKS,
    "vit_small_patch14_reg4_dinov2": BLOCKS,
    "vit_small_patch16_dinov3": BLOCKS,
    "convnext_tiny": {"depths": [1, 1, 2, 1]},  # also DINOv3's
    "eva02_tiny_patch14_336": BLOCKS,
    "samvit_base_patch16": BLOCKS | {"embed_dim": 96, "num_heads": 4, "global_attn_indexes": [1, 3]},
    "swin_tiny_patch4_window7_224": {"depths": [2, 1, 2, 1]},
    "resnet50": {"layers": [1, 1, 1, 1]},
}
SIZES = ((112, 112), (112, 168))


def network(name: str, decoder: str) -> MsclForSemanticSegmentation:
    torch.manual_seed(0)
    options = {"image_size": 112, "decoder_type": decoder, "decoder_channels": 16, "num_labels": 5}
    return MsclForSemanticSegmentation(build_config(name, backbone_kwargs=FAMILIES[name], **options))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_training_and_saving(tmp_path, name, decoder):
    """Two steps change backbone and decoder, and the opened model has the same logits, bit for bit, at two sizes."""
    model = network(name, decoder).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        model(torch.randn(2, 3, 112, 112), labels=torch.randint(5, (2, 112, 112))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for part in ("backbone", "decoder", "classifier"):
        assert any(key.startswith(part) and not torch.equal(value, before[key]) for key, value in model.named_parameters())
    model.eval().save_pretrained(tmp_path)
    opened = MsclForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for size in SIZES:
            images = torch.randn(1, 3, *size)
            logits = model(images).logits
            assert torch.isfinite(logits).all() and torch.equal(opened(images).logits, logits)


@pytest.mark.parametrize("decoder", ["dpt", "linear"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("swin")])  # test_export.py has Swin at one size
def test_onnx_at_two_sizes(tmp_path, name, decoder):
    """The exported graph has the same logits at sizes and batches that the export did not compare."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = network(name, decoder).eval()
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "onnx", tmp_path / "out")
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch, size in zip((1, 2), SIZES):
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            logits = model(images).logits
        expected = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        found = torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])
        assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())

"""Pictures of images with their masks and the predictions of some networks."""

from dataclasses import fields
from pathlib import Path

import torch

from mscl_hf.config import DataConfig, InferenceConfig
from mscl_hf.data import open_whole_split
from mscl_hf.evaluation.inference import predict_ids
from mscl_hf.models.loading import open_model
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.models.normalization import image_statistics, normalize
from mscl_hf.visual.figures import comparison_strip

IMAGES = 5


def draw_strip(models: dict[str, Path], flags: dict, path: Path) -> None:
    """Draw images, masks, and a column of predictions for each fine-tuned model, by title. flags: of the evaluation."""
    options = {name.replace("-", "_"): value for name, value in flags.items()}
    names = {f.name for f in fields(DataConfig)}
    data = open_whole_split(DataConfig(**{name: value for name, value in options.items() if name in names}), options["split"])
    samples = [data.read(index) for index in range(len(data) // (2 * IMAGES), len(data), len(data) // IMAGES)][:IMAGES]
    columns = {"truth": [sample.mask for sample in samples]}
    for title, folder in models.items():
        network = open_model(MsclForSemanticSegmentation, str(folder)).eval()
        columns[title] = [predict(network, sample.image) for sample in samples]
    comparison_strip([sample.image for sample in samples], columns, data.classes, path)


def predict(network: MsclForSemanticSegmentation, image):
    """Class ids (H, W) of an image (H, W, 3), which is scaled as in training."""
    config = network.config
    pixels = normalize(torch.from_numpy(image.copy()).permute(2, 0, 1)[None], *image_statistics(config))
    return predict_ids(network, pixels, image.shape[:2], InferenceConfig(base_size=config.base_size))[0].numpy()

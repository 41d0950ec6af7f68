"""Linear probes: classifiers fitted on frozen features, to judge a pre-training or to start a fine-tuning from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.training_data import TrainingData
from ..evaluation.metrics import MeanIoU
from ..losses.labels import IGNORE_INDEX, labels_at
from ..methods import SegmentationTraining
from .setup import Buffers

MOST_CELLS = 200_000  # of all batches together: 0.2 GB at 256 channels


def ridge_probe(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, classes: int, ridge: float = 1e-2) -> float | None:
    """Mean IoU on held-out cells of a ridge regression from frozen features to one-hot labels, in closed form.

    x (n, cells, D), y (n, cells) with 255 = ignored; None when one of the two has no labelled cell. Cells count, not pixels: a figure to
    compare over steps, not with evaluation.
    """
    keep = y.flatten() != IGNORE_INDEX
    if not keep.any() or not (y_held != IGNORE_INDEX).any():
        return None
    rows, labels = x.flatten(0, 1)[keep].double(), y.flatten()[keep]
    mean, deviation = rows.mean(0), rows.std(0).clamp(min=1e-6)

    def design(z: Tensor) -> Tensor:
        z = (z.double() - mean) / deviation
        return torch.cat([z, torch.ones(*z.shape[:-1], 1, dtype=z.dtype)], dim=-1)

    a = design(rows)
    penalty = ridge * len(a) * torch.eye(a.shape[1], dtype=a.dtype)
    weights = torch.linalg.solve(a.T @ a + penalty, a.T @ F.one_hot(labels, classes).double())
    predicted = (design(x_held) @ weights).argmax(-1)
    options = {"num_labels": classes, "ignore_index": IGNORE_INDEX}
    return float(MeanIoU().compute(predictions=[predicted.numpy()], references=[y_held.numpy()], **options)["mean_iou"])


def start_classifier(method: SegmentationTraining, data: TrainingData, batches: int) -> float | None:
    """Fit the 1x1 classifier on the frozen decoder's cells of the first `batches` training batches, by logistic regression: a softmax, or
    one class against the rest where the fine-tuning loss reads the logits so.

    A random classifier sends noise into the features while it learns; a fitted one leaves them what pre-training made of them (linear
    probing before fine-tuning: Kumar et al., ICLR 2022, arXiv:2202.10054). Returns the share of training cells it gets right, None
    when no cell is labelled and nothing was changed.
    """
    network = method.network
    x, y = _cells(method, data, batches)
    if not len(y):
        return None
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-3)
    x = (x - mean) / deviation
    weight, bias = logistic_regression(x, y, network.config.num_labels, sigmoid=method.row.sigmoid)
    right = (F.linear(x, weight, bias).argmax(1) == y).float().mean()
    weight = weight / deviation
    with torch.no_grad():
        network.classifier.weight.copy_(weight[:, :, None, None])
        network.classifier.bias.copy_(bias - weight @ mean)
    return float(right)


@torch.no_grad()
def _cells(method: SegmentationTraining, data: TrainingData, batches: int) -> tuple[Tensor, Tensor]:
    """Labelled cells of the decoder's map: features (n, D) in float32 and classes (n,).

    Normalised by batch statistics, as in the training that follows: a network that was never trained has no others.
    """
    network, device = method.network, method.image_mean.device
    training, buffers = network.training, Buffers(network)
    network.train()
    chosen = torch.Generator().manual_seed(data.seed)
    xs, ys = [], []
    for batch in data.batches(0, batches, device=device):  # all of it on every process: each then starts from the same classifier
        features = network.decoder(list(network.backbone(method.normalize(batch["image"])).feature_maps)).float()
        labels = labels_at(batch["mask"], features.shape[-2:]).flatten()
        places = (labels != IGNORE_INDEX).nonzero()[:, 0]
        places = places[torch.randperm(len(places), generator=chosen).to(device)[: max(1, MOST_CELLS // batches)]]
        xs.append(features.flatten(2).transpose(1, 2).flatten(0, 1)[places])
        ys.append(labels[places])
        if len(xs) == batches:  # a stream does not end by itself
            break
    network.train(training)
    buffers.restore()
    return torch.cat(xs), torch.cat(ys)


def logistic_regression(x: Tensor, y: Tensor, classes: int, penalty: float = 1e-3, sigmoid: bool = False) -> tuple[Tensor, Tensor]:
    """Weights (K, D) and biases (K,) that minimise cross-entropy + penalty * (|W|^2 + |b|^2), by L-BFGS.

    sigmoid: the sum of the classes' binary cross-entropies instead. The penalty on the bias keeps classes without a cell within reach of
    later training.
    """
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")
    one_hot = F.one_hot(y, classes).to(x.dtype) if sigmoid else None

    def cross_entropy(logits: Tensor) -> Tensor:
        if one_hot is None:
            return F.cross_entropy(logits, y)
        return F.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum") / len(y)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(F.linear(x, weight, bias)) + penalty * (weight.square().sum() + bias.square().sum())
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()

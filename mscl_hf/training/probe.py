"""Linear classifiers fitted on frozen features, to measure pre-training or to initialize fine-tuning."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.training_data import TrainingData
from ..evaluation.metrics import MeanIoU
from ..losses.labels import IGNORE_INDEX, labels_at
from ..methods import SegmentationTraining
from .setup import Buffers

MAX_POSITIONS = 200_000  # in all batches together: 0.2 GB with 256 channels


def ridge_probe(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, classes: int, ridge: float = 1e-2) -> float | None:
    """Return the mean IoU on held-out positions of a ridge regression from frozen features to one-hot labels, in closed form.

    x, x_held: features (N, P, D) at P positions of a feature map; y, y_held: labels (N, P), 255 = ignored.
    None where one of the two has no labelled position. Positions are counted, not pixels: values can be compared between steps, not
    with evaluation.
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
    """Fit the classifier on frozen features of the first training batches by logistic regression, and return its accuracy on them.

    None where no position is labelled; the classifier is then unchanged. The logits are those of a softmax, or of one sigmoid per class
    where the fine-tuning loss uses these. A random classifier would distort the pre-trained features while it learns (linear probing
    before fine-tuning: Kumar et al., ICLR 2022, arXiv:2202.10054).
    """
    network = method.network
    x, y = _labelled_features(method, data, batches)
    if not len(y):
        return None
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-3)
    x = (x - mean) / deviation
    weight, bias = logistic_regression(x, y, network.config.num_labels, sigmoid=method.row.sigmoid)
    accuracy = (F.linear(x, weight, bias).argmax(1) == y).float().mean()
    weight = weight / deviation
    with torch.no_grad():
        network.classifier.weight.copy_(weight[:, :, None, None])
        network.classifier.bias.copy_(bias - weight @ mean)
    return float(accuracy)


@torch.no_grad()
def _labelled_features(method: SegmentationTraining, data: TrainingData, batches: int) -> tuple[Tensor, Tensor]:
    """Return features (n, D) of the decoder in float32 and classes (n,), at the n labelled positions.

    BatchNorm uses batch statistics, as in training: a new network has no others. That of frozen layers uses those that it has.
    """
    network, device = method.network, method.image_mean.device
    training, buffers = method.training, Buffers(network)
    method.train()
    generator = torch.Generator().manual_seed(data.seed)
    xs, ys = [], []
    for batch in data.labelled_alone().batches(0, batches, device=device):  # whole batches: all processes fit the same classifier
        features = network.decoder(list(network.backbone(method.normalize(batch["image"])).feature_maps)).float()
        labels = labels_at(batch["mask"], features.shape[-2:]).flatten()
        indices = (labels != IGNORE_INDEX).nonzero()[:, 0]
        indices = indices[torch.randperm(len(indices), generator=generator).to(device)[: max(1, MAX_POSITIONS // batches)]]
        xs.append(features.flatten(2).transpose(1, 2).flatten(0, 1)[indices])
        ys.append(labels[indices])
        if len(xs) == batches:  # a stream has no end
            break
    method.train(training)
    buffers.restore()
    return torch.cat(xs), torch.cat(ys)


def logistic_regression(x: Tensor, y: Tensor, classes: int, penalty: float = 1e-3, sigmoid: bool = False) -> tuple[Tensor, Tensor]:
    """Return weights (K, D) and biases (K,) that minimize cross-entropy + penalty * (|W|^2 + |b|^2), by L-BFGS.

    sigmoid: minimize the sum of the binary cross-entropies of the classes instead. The penalty on the bias keeps the logits of classes
    without examples finite.
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

"""ReCo: contrast of hard pixels with the mean of their class and the pixels of similar classes (Liu et al., ICLR 2022, arXiv:2104.04465).

Letters: B images, N positions of an image, M positions of all images, E embedding, C classes that occur.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .gather import gather_rows
from .labels import IGNORE_INDEX
from .pixel_contrast import anchor_weights, class_means
from .streamed import MASKED_SCORE, Block, TermResult, logsumexp, streamed_sum

LABELLED_FROM = 0.7  # probability of the teacher's label, from which it is a label of the contrast
HARD_BELOW = 0.97  # predicted probability of the label, below which a pixel is an anchor
NEGATIVES = 512  # of each anchor, as released


@without_autocast
def regional_contrast(embeddings: Tensor, labels: Tensor, is_hard: Tensor, temperature: float = 0.5) -> Tensor:
    """mean_c mean_{hard p in c} [ log( exp(s_pc) + n sum_{c' != c} P_c(c') mean_{k in c'} exp(s_pk) ) - s_pc ].

    s_pk = <z_p, z_k>/t; s_pc is that of the unit mean m_c of class c; P_c(c') is the softmax of <m_c, m_c'>/t over the other classes. Keys
    and means have no gradient. The release draws 256 anchors of each class and n = 512 negatives, classes by P_c; here all hard pixels
    are anchors, and the sum over the negatives is the expected value of that over the drawn ones. The mean is over the classes with hard
    pixels; the release divides by the number of all classes that occur.

    embeddings (B, N, E): unit vectors; labels (B, N) with 255 = ignored; is_hard (B, N) bool. Keys are those of all processes. Zero if
    fewer than two classes occur.
    """
    anchors, labels = at_least_float32(embeddings).flatten(0, 1)[None], labels.long()
    keys, key_labels = gather_rows(anchors[0].detach())[0], gather_rows(labels.flatten())[0]
    means, sizes = (value[0] for value in class_means(keys[None], key_labels[None]))
    present = sizes.nonzero()[:, 0]
    if len(present) < 2:
        return anchors.sum() * 0
    means = F.normalize(means[present], dim=1)
    position = torch.full((256,), len(present), device=labels.device)  # of a class among those that occur; ignored pixels are one more
    position[present] = torch.arange(len(present), device=labels.device)
    bias = _bias_of_keys(means @ means.T / temperature, sizes[present])
    classes = position[labels.flatten()].clamp(max=len(present) - 1)
    columns = torch.cat([position[key_labels], len(present) + 1 + torch.arange(len(present), device=labels.device)])
    plain = logsumexp()

    def term(block: Block) -> TermResult:
        block.scores.add_(bias[classes[block.rows]][:, columns])
        return plain(block)

    hard = torch.where(is_hard, labels, IGNORE_INDEX).flatten()[None]
    weight = anchor_weights(hard, torch.ones_like(hard, dtype=keys.dtype), (), "class", one_set=True)
    all_keys = streamed_sum(term, anchors, torch.cat([keys, means])[None], temperature, weight)
    return all_keys - (weight * (anchors * means[classes]).sum(2)).sum() / temperature


def _bias_of_keys(similarities: Tensor, sizes: Tensor) -> Tensor:
    """Return what is added to the score of a key, (C, 2 C + 1): row = class of the anchor; column = class of the key, an ignored key, then
    the mean of a class. similarities (C, C): of the means over the temperature; sizes (C,): keys of each class."""
    own = torch.eye(len(sizes), dtype=torch.bool, device=sizes.device)
    of_classes = similarities.masked_fill(own, MASKED_SCORE).log_softmax(1)
    of_keys = (torch.log(NEGATIVES / sizes) + of_classes).masked_fill(own, MASKED_SCORE)
    of_means = torch.zeros_like(of_keys).masked_fill(~own, MASKED_SCORE)
    return torch.cat([of_keys, torch.full_like(of_keys[:, :1], MASKED_SCORE), of_means], 1)

"""A remembered embedding of each training image (InstDisc, Wu et al., CVPR 2018; CMC has one for each tower)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.gather import gather_rows


class MemoryBank(nn.Module):
    """One row for each of `images` images, saved with the method. Random at first; a row moves half way to each new embedding of its
    image."""

    same_everywhere = True

    def __init__(self, images: int, dim: int, momentum: float = 0.5):
        super().__init__()
        self.momentum = momentum
        reach = (3 / dim) ** 0.5
        self.register_buffer("rows", torch.empty(images, dim).uniform_(-reach, reach))

    def read(self) -> Tensor:
        """All rows (images, dim), not a copy: a graph must hold no more than rows taken from it by index."""
        return self.rows

    @torch.no_grad()
    def write(self, index: Tensor, vectors: Tensor) -> None:
        """row <- unit(momentum * row + (1 - momentum) * vector), for the images of all processes: the bank is the same on each."""
        index, vectors = gather_rows(index)[0], gather_rows(vectors.detach().to(self.rows.dtype))[0]
        index, order = index.sort(stable=True)  # of an image that is in it twice the last one counts, on every device and process
        last = torch.cat([index[1:] != index[:-1], index.new_ones(1, dtype=torch.bool)])
        index, vectors = index[last], vectors[order[last]]
        self.rows[index] = F.normalize(self.momentum * self.rows[index] + (1 - self.momentum) * vectors, dim=1)

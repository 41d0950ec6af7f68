"""A ring buffer of embeddings from earlier batches: more negatives than a batch holds (He et al., CVPR 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The newest `length` rows of size `dim`, saved with the model. Starts empty: no random row ever stands in a denominator."""

    same_everywhere = True  # on all processes, since each writes the keys of all

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def read(self) -> Tensor:
        """The rows written so far (n, dim), not a copy: a loss takes what it needs of them while it is computed."""
        return self.rows[: int(self.filled)]

    @torch.no_grad()
    def write(self, keys: Tensor) -> None:
        """Put keys (n, dim) over the oldest rows, around the end if need be; the same on every process if they are gathered."""
        length = len(self.rows)
        keys = F.normalize(keys.detach().to(self.rows.dtype), dim=1)[-length:]
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % length
        self.rows[places] = keys
        self.pointer.copy_((self.pointer + len(keys)) % length)
        self.filled.copy_((self.filled + len(keys)).clamp(max=length))

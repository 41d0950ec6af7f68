"""Embeddings of other batches: a queue of the newest ones (MoCo), and a memory bank with one for each training image (InstDisc)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.gather import gather_rows


class Memory(nn.Module):
    """Embeddings `rows` (n, D), saved with the method and equal on all processes.

    After `keep()`, `restore()` undoes all writes. Only overwritten rows are copied: a copy of a queue of 65,536 rows in each step takes
    longer than the step of a small network.
    """

    rows: Tensor

    def __init__(self):
        super().__init__()
        self._overwritten: list[tuple[Tensor, Tensor]] | None = None  # indices and rows; None until keep() is called

    def keep(self) -> None:
        """Start to record the rows that are overwritten."""
        self._overwritten = []

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the rows as they were when `keep` was called."""
        for indices, rows in reversed(self._overwritten or ()):
            self.rows[indices] = rows
        self._overwritten = []

    def _replace(self, indices: Tensor, rows: Tensor) -> None:
        """Overwrite rows; each index occurs once."""
        if self._overwritten is not None:
            self._overwritten.append((indices, self.rows[indices]))
        self.rows[indices] = rows


class Queue(Memory):
    """A ring buffer of the newest `length` rows (He et al., CVPR 2020). It starts empty: no random row is ever a negative."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, dim))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def read(self) -> Tensor:
        """Return the rows written so far (n, D), not a copy: losses read them before the next write."""
        return self.rows[: int(self.filled)]

    @torch.no_grad()
    def write(self, keys: Tensor) -> None:
        """Overwrite the oldest rows by the keys (n, D) of all processes, brought to unit length."""
        length = len(self.rows)
        keys = F.normalize(gather_rows(keys.detach())[0].to(self.rows.dtype), dim=1)[-length:]
        self._replace((self.pointer + torch.arange(len(keys), device=keys.device)) % length, keys)
        self.pointer.copy_((self.pointer + len(keys)) % length)
        self.filled.copy_((self.filled + len(keys)).clamp(max=length))


class MemoryBank(Memory):
    """One row for each of `images` images, random at first (Wu et al., CVPR 2018).

    row <- unit(momentum * row + (1 - momentum) * new embedding of its image)
    """

    def __init__(self, images: int, dim: int, momentum: float = 0.5):
        super().__init__()
        self.momentum = momentum
        bound = (3 / dim) ** 0.5
        self.register_buffer("rows", torch.empty(images, dim).uniform_(-bound, bound))

    def read(self) -> Tensor:
        """Return all rows (images, D), not a copy: a graph must hold only rows taken from it by index."""
        return self.rows

    @torch.no_grad()
    def write(self, index: Tensor, vectors: Tensor) -> None:
        """Move the rows of images index (B,) towards vectors (B, D), on every process those of all processes."""
        index, vectors = gather_rows(index)[0], gather_rows(vectors.detach().to(self.rows.dtype))[0]
        index, order = index.sort(stable=True)  # of an image that occurs twice the last vector counts, on every device and process
        last = torch.cat([index[1:] != index[:-1], index.new_ones(1, dtype=torch.bool)])
        index, vectors = index[last], vectors[order[last]]
        self._replace(index, F.normalize(self.momentum * self.rows[index] + (1 - self.momentum) * vectors, dim=1))

"""A pipeline of threads, images in groups of one size, and a network that sees several at once."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")
WAITING = 4  # groups of full size whose images are in memory while groups of several sizes are filled


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield function(item) in the order of the items. Threads compute it for the next items meanwhile; an error is raised in its turn."""
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def of_one_size(items: Iterable[Item], size_of: Callable[[Item], Hashable], most: Callable[[Hashable], int]) -> Iterator[list[Item]]:
    """Yield all items in lists of one size, of up to most(size) items each; they are as many as that, where enough of the size occur."""
    waiting: dict[Hashable, list[Item]] = {}
    limit = 1
    for item in items:
        size = size_of(item)
        group = waiting.setdefault(size, [])
        group.append(item)
        limit = max(limit, WAITING * most(size))
        if len(group) >= most(size) or sum(map(len, waiting.values())) >= limit:
            largest = max(waiting, key=lambda other: len(waiting[other]))
            yield waiting.pop(size if len(group) >= most(size) else largest)
    yield from waiting.values()


class InBatches:
    """A network that is given any number of images or windows and sees at most `size` of them at once."""

    def __init__(self, model: Callable, size: int):
        """model: model(pixel_values=x).logits is (B, K, h, w)."""
        self.model, self.size = model, size

    def __call__(self, pixel_values: Tensor) -> SimpleNamespace:
        """Return the logits (B, K, h, w) of all images. Where memory does not suffice, `size` is halved, which is printed."""
        parts, start = [], 0
        while start < len(pixel_values):
            part = pixel_values[start : start + self.size]
            try:
                parts.append(self.model(pixel_values=part).logits)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.size = len(part) // 2
                tqdm.write(f"{len(part)} images or windows at once need more memory than there is; continuing with {self.size}")
                continue
            start += len(part)
        return SimpleNamespace(logits=torch.cat(parts) if len(parts) > 1 else parts[0])

"""A pipeline of threads, images in groups of one size, and a network that runs on several at once."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")
LARGE = 2**24  # px of an image; while such images are used, none is read ahead
MOST_WAITING = 4  # groups' worth of images that wait for others of their size


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, is_large: Callable[[Result], bool] = lambda result: False
) -> Iterator[Result]:
    """Yield function(item) in the order of the items. Threads compute it for as many next items meanwhile; an error is raised in its turn.

    After a large result, the next one is computed when it is needed, so that few large results are in memory.
    """
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        pending, ahead = deque(), threads
        for item in items:
            pending.append(pool.submit(function, item))
            while len(pending) > ahead:
                result = pending.popleft().result()
                ahead = 0 if is_large(result) else threads
                yield result
        while pending:
            yield pending.popleft().result()


def of_one_size(items: Iterable[Item], size_of: Callable[[Item], Hashable], at_once: Callable[[Hashable], int]) -> Iterator[list[Item]]:
    """Yield the items in lists of one size, of at most at_once(size) items; a list is shorter at the end, or where too many items wait."""
    waiting: dict[Hashable, list[Item]] = {}

    def fullness(size: Hashable) -> float:
        return len(waiting[size]) / at_once(size)

    for item in items:
        waiting.setdefault(size_of(item), []).append(item)
        fullest = max(waiting, key=fullness)
        if fullness(fullest) >= 1 or sum(map(fullness, waiting)) >= MOST_WAITING:
            yield waiting.pop(fullest)
    yield from waiting.values()


class InBatches:
    """A network that runs on any number of images or windows, at most `size` at once."""

    def __init__(self, model: Callable, size: int):
        """model: model(pixel_values=x).logits is (B, K, h, w)."""
        self.model, self.size = model, size

    def __call__(self, pixel_values: Tensor) -> SimpleNamespace:
        """Return the logits (B, K, h, w) of all images. If a GPU has too little memory, `size` is halved, which is printed."""
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

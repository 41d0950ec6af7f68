"""Progress bars. Inside of `chain`, the bars of all stages are parts of one bar; in a log file, each stage is one line."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

_chain: "Chain | None" = None


def progress_bar(iterable: Iterable | None = None, **options: Any) -> "tqdm | _Part":
    """Return a bar of tqdm with these options, or a part of the bar of the chain that runs."""
    if _chain is None:
        if options.get("disable") is None and _in_notebook():  # its stderr is not a terminal
            options["disable"] = False
        return tqdm(iterable, dynamic_ncols=True, **options)
    return _Part(_chain, iterable, options)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


@contextmanager
def chain(shares: Mapping[str, float]) -> Iterator["Chain"]:
    """Show one bar for several stages. shares: the expected time of each stage, in any unit."""
    global _chain
    _chain = Chain(shares)
    try:
        yield _chain
    finally:
        _chain.bar.close()
        _chain = None


class Chain:
    """One bar over several stages; a finished stage leaves a line with its duration."""

    def __init__(self, shares: Mapping[str, float]):
        self.shares, self.finished, self.started = dict(shares), 0.0, time.perf_counter()
        self.output = sys.stderr  # the stages may redirect it
        self.bar = tqdm(
            total=round(sum(shares.values()), 3), file=self.output, disable=not self.output.isatty(), dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
        )  # fmt: skip

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run a stage; `name` is a key of the shares."""
        self.share, started = self.shares[name], time.perf_counter()
        self.bar.set_description_str(name)
        yield
        self.move_to(1.0)
        self.finished += self.share
        tqdm.write(f"{name}: {time.perf_counter() - started:.0f} s", file=self.output)

    def move_to(self, done: float) -> None:
        """Show that this part of the stage, in [0, 1], is done; the bar never moves back."""
        self.bar.update(max(0.0, self.finished + done * self.share - self.bar.n))


class _Part:
    """The bar of a loop inside of a stage, with what the loops use of tqdm. A loop that shows a bar only if it is slow moves nothing."""

    disable = False

    def __init__(self, chain: Chain, iterable: Iterable | None, options: dict):
        self.chain, self.iterable, self.moves, self.n = chain, iterable, "delay" not in options, options.get("initial", 0)
        self.total = max(1, options["total"] if "total" in options else len(iterable))

    def __iter__(self) -> Iterator:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        self.n += count
        if self.moves:
            self.chain.move_to(self.n / self.total)

    def set_postfix(self, *_: Any, **__: Any) -> None:
        """Show no values: the bar has no room for those of a stage."""

    def close(self) -> None:
        """Leave the bar of the chain open for the next loop."""

"""The choice of labelled images: nested, seeded subsets that keep the proportions of the groups."""

from collections import defaultdict
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from hashlib import blake2b
from typing import Any


def choose_subset(
    data: Any,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Split the rows of a data set into a labelled and an unlabelled part.

    data: anything with a length and, optionally, `groups`; or the number of rows.
    fraction: part of the rows in (0, 1], rounded half up, at least one row. count: number of rows. Neither: all rows.
    Returns (labelled, unlabelled), both in ascending order. For one seed a smaller subset is part of every larger one, and every subset
    takes its proportional share of each group, to about the next whole number.
    Raises ValueError if both are given or out of range, or if groups and rows differ in number.
    """
    total = len(data) if hasattr(data, "__len__") else int(data)
    groups = getattr(data, "groups", None) if groups is None else groups
    if groups is not None and len(groups) != total:
        raise ValueError(f"groups has {len(groups)} entries; expected {total}, one for each row.")
    size = subset_size(total, fraction, count)
    rows = subset_order(total, seed, groups)
    return sorted(rows[:size]), sorted(rows[size:])


def subset_size(total: int, fraction: float | None, count: int | None) -> int:
    """Return the number of rows of a fraction or a count. Raises ValueError unless it is in 1..total."""
    if total < 1:
        raise ValueError("the data set has no images; expected at least 1. Give another one.")
    if fraction is not None and count is not None:
        raise ValueError(f"--train-fraction is {fraction} and --train-count is {count}; expected one of them. Leave out the other.")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"--train-fraction is {fraction}; expected above 0 and at most 1.")
        exact = Decimal(str(fraction)) * total  # decimal, since 0.145 * 100 is 14.499999999999998 in binary
        return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
    if count is None:
        return total
    if not 1 <= count <= total:
        raise ValueError(f"--train-count is {count}; expected 1..{total}, the number of images.")
    return count


def subset_order(total: int, seed: int, groups: Sequence[str] | None = None) -> list[int]:
    """Return a seeded permutation of all rows in which every prefix is spread over the groups (systematic sampling).

    Row r of a group of n gets the key (r + u) / n, u being the group's own seeded offset in [0, 1): the rows with keys below t are t * n
    of the group up to rounding, and no group is favored over the seeds.
    Hashes rather than a random generator: the subsets stay the same with every version of every library.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index in range(total):
        members["" if groups is None else str(groups[index])].append(index)
    keys = []
    for group, rows in members.items():
        offset = _uniform(seed, "group", group)
        for rank, index in enumerate(sorted(rows, key=lambda i: _uniform(seed, "row", i))):
            keys.append(((rank + offset) / len(rows), index))
    return [index for _, index in sorted(keys)]


def _uniform(*key: Any) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") / 2**64

"""Which images keep their labels: nested, seeded subsets that keep the proportions of the groups."""

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
    """Split the rows of a data set into a labelled part and the rest.

    data: anything with a length and, optionally, `groups`; or the number of rows.
    fraction: part of the rows in (0, 1], rounded half up, at least one row. count: number of rows. Neither: all rows.
    Returns (labelled, rest), both in ascending order. For one seed a smaller subset lies inside every larger one, and
    every subset takes of each group its proportional share, to the next whole number or so.
    Raises ValueError when both are given, when they are out of range, or when groups and rows differ in number.
    """
    total = len(data) if hasattr(data, "__len__") else int(data)
    groups = getattr(data, "groups", None) if groups is None else groups
    if groups is not None and len(groups) != total:
        raise ValueError(f"got {len(groups)} groups for {total} rows; give one group for each row")
    size = subset_size(total, fraction, count)
    order = subset_order(total, seed, groups)
    return sorted(order[:size]), sorted(order[size:])


def subset_size(total: int, fraction: float | None, count: int | None) -> int:
    """The number of rows that a fraction or a count means. Raises ValueError when it is not in 1..total."""
    if total < 1:
        raise ValueError("there are no images to take a part of; give a data set that has some")
    if fraction is not None and count is not None:
        raise ValueError(f"got both a train fraction ({fraction}) and a train count ({count}); give only one of them")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"the train fraction is {fraction}; it must be above 0 and at most 1")
        exact = Decimal(str(fraction)) * total  # decimal, since 0.145 * 100 is 14.499999999999998 in binary
        return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
    if count is None:
        return total
    if not 1 <= count <= total:
        raise ValueError(f"the train count is {count}; it must lie in 1..{total}, the number of images there are")
    return count


def subset_order(total: int, seed: int, groups: Sequence[str] | None = None) -> list[int]:
    """One seeded order of all rows in which every prefix is spread over the groups (systematic sampling).

    Row r of a group of n gets the place (r + u) / n, u being the group's own seeded offset in [0, 1): a prefix that
    ends at place t holds t * n rows of the group up to rounding, and no group is favoured over the seeds.
    Hashes rather than a random generator: the lists stay the same with every version of every library.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index in range(total):
        members["" if groups is None else str(groups[index])].append(index)
    places = []
    for group, rows in members.items():
        offset = _uniform(seed, "group", group)
        for rank, index in enumerate(sorted(rows, key=lambda i: _uniform(seed, "row", i))):
            places.append(((rank + offset) / len(rows), index))
    return [index for _, index in sorted(places)]


def _uniform(*key: Any) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") / 2**64

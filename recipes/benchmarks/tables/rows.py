"""The runs behind the paper's three tables, read from their CSV files: by setting, cell, share of the masks and seed.

Mean IoU is in % everywhere but in those files.
"""

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from benchmark import mean_sd

SHARES = {1: ("1/10", "1/5", "1/2", "all"), 2: ("1/2",), 3: ("1/5", "all")}
SUMS = {"g+l": "gl", "g+p": "gp", "l+p": "lp"}
OF_THE_PAPER = {1: ("none", "mscl"), 2: ("none", "g", "l", "p", *SUMS, "g+l+p"), 3: ("none", "simclr", "aaf", "rmi", "mscl")}
CELLS = {  # in the order of the tables; cells that are not named here come last
    1: ("none", "none_long", "imagenet", "imagenet_long", "mscl", "mscl_unlabelled"),
    2: (*OF_THE_PAPER[2], "imagenet"),
    3: (*OF_THE_PAPER[3], "imagenet"),
}
DATASETS = {"camvid": "CamVid", "voc2012": "PASCAL VOC 2012", "cityscapes": "Cityscapes"}
PARTS = {(scale, "voc2012"): "PASCAL VOC 2012, animal-centred part" for scale in ("small", "medium")}  # of all its images
SCALES = ("small", "medium", "full")
READINGS = {"best": "best reading", "printed": "as printed"}
STARTS = {"imagenet": "from ImageNet weights", "random": "from random weights"}


@dataclass(frozen=True)
class Table:
    """Plain text in rows, each as long as the head; its first column names the rows."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


class Setting(NamedTuple):
    """What runs must share to be compared."""

    scale: str
    dataset: str
    reading: str
    start: str

    def words(self) -> tuple[str, ...]:
        dataset = PARTS.get((self.scale, self.dataset), DATASETS.get(self.dataset, self.dataset))
        return dataset, f"{self.scale} scale", READINGS[self.reading], STARTS[self.start]

    def __str__(self):
        return ", ".join(self.words())

    def is_main(self) -> bool:
        """The one that is run whole on every data set."""
        return (self.reading, self.start) == ("best", "imagenet")

    def rank(self) -> tuple:
        dataset = (*DATASETS, self.dataset).index(self.dataset), self.dataset
        return self.reading != "best", self.start != "imagenet", SCALES.index(self.scale), dataset


class Block:
    """The runs of one table in one setting; there may be none."""

    def __init__(self, number: int, rows: list[dict]):
        self.rows, self.shares = rows, SHARES[number]
        there = dict.fromkeys(row["cell"] for row in rows)
        self.cells = sorted(there, key=lambda cell: CELLS[number].index(cell) if cell in CELLS[number] else len(CELLS[number]))

    @property
    def run_shares(self) -> list[str]:
        there = {row["share"] for row in self.rows}
        return [share for share in self.shares if share in there]

    def runs(self, cell: str, share: str) -> dict[str, dict]:
        """By seed."""
        return {row["seed"]: row for row in self.rows if (row["cell"], row["share"]) == (cell, share)}

    def scores(self, cell: str, share: str) -> list[float]:
        return [100 * float(row["mean_iou"]) for row in self.runs(cell, share).values()]

    def gains(self, cell: str, other: str, share: str) -> dict[str, float]:
        """Differences of mean IoU in % by the seeds that both cells have."""
        ours, theirs = self.runs(cell, share), self.runs(other, share)
        return {seed: 100 * (float(ours[seed]["mean_iou"]) - float(theirs[seed]["mean_iou"])) for seed in ours if seed in theirs}

    def all_of(self, key: str, between: str = " ") -> str:
        """What stands in a column, each once; a row holds several where its runs differ."""
        return " and ".join(sorted({value for row in self.rows for value in row[key].split(between)}))

    def headline(self, share: str, gap: str = " ") -> str:
        """A share with its number of masks, where that is known."""
        counts = {row["train_count"] for row in self.rows if row["share"] == share} - {"all"}
        return f"{share}{gap}({counts.pop()})" if counts else share

    def by_share(self, cell: str, text: Callable[[list[dict]], str]) -> str:
        """One text where all shares agree, else one a share."""
        texts = [text(list(runs.values())) for share in self.shares if (runs := self.runs(cell, share))]
        return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

    def passes(self, cell: str) -> str:
        """Of images through the network, in pre-training + in fine-tuning."""
        return self.by_share(cell, lambda runs: f"{int(runs[0]['pretrain_passes']):,} + {int(runs[0]['finetune_passes']):,}")


def read(results_dir: Path) -> dict[int, list[dict]]:
    """The rows of the tables that are there."""
    rows = {}
    for number in SHARES:
        path = Path(results_dir) / f"table{number}.csv"
        if path.is_file():
            with path.open(newline="") as file:
                rows[number] = list(csv.DictReader(file))
    return {number: found for number, found in rows.items() if found}


def blocks(rows_by_table: dict[int, list[dict]], subset: str | None = "0") -> dict[Setting, dict[int, Block]]:
    """The runs by setting and table, best reading from ImageNet weights first; of one subset of masks, or (None) of all of them."""
    wanted = {n: [row for row in rows if subset in (None, row["subset_seed"])] for n, rows in rows_by_table.items()}
    of = {number: [(Setting(*(row[key] for key in Setting._fields)), row) for row in rows] for number, rows in wanted.items()}
    settings = sorted({setting for rows in of.values() for setting, _ in rows}, key=Setting.rank)
    return {each: {n: Block(n, [row for setting, row in of.get(n, ()) if setting == each]) for n in SHARES} for each in settings}


def has_the_papers_rows(tables: dict[int, Block]) -> bool:
    """Of all three tables, in one setting."""
    return all(set(OF_THE_PAPER[number]) <= set(block.cells) for number, block in tables.items())


def part(share: str) -> Fraction:
    return Fraction(1 if share == "all" else share)


def shown(scores: list[float]) -> str:
    return mean_sd(scores) if scores else "-"


def pooled_sd(*samples: Sequence[float]) -> float | None:
    """Sample deviation around each sample's own mean; None where no sample has two numbers."""
    freedom = sum(len(sample) - 1 for sample in samples)
    return (sum(statistics.variance(s) * (len(s) - 1) for s in samples if len(s) > 1) / freedom) ** 0.5 if freedom else None

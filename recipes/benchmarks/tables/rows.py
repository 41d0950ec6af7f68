"""The runs behind the paper's three tables, read from their CSV files, by setting, cell, share of the masks and seed.

Mean IoU is in %, except in those files.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from ..common import read_csv

SHARES = {1: ("1/10", "1/5", "1/2", "all"), 2: ("1/2",), 3: ("1/5", "all")}
SUMS = {"g+l": "gl", "g+p": "gp", "l+p": "lp"}
PAPER_CELLS = {1: ("none", "mscl"), 2: ("none", "g", "l", "p", *SUMS, "g+l+p"), 3: ("none", "simclr", "aaf", "rmi", "mscl")}
CELLS = {  # in the order of the tables; other cells come last
    1: ("none", "none_long", "imagenet", "imagenet_long", "mscl", "mscl_unlabelled", "semi", "mscl_semi"),
    2: (*PAPER_CELLS[2], "imagenet"),
    3: (*PAPER_CELLS[3], "imagenet", "semi", "mscl_semi"),
}
DATASETS = {"camvid": "CamVid", "voc2012": "PASCAL VOC 2012", "cityscapes": "Cityscapes"}
PARTS = {(scale, "voc2012"): "PASCAL VOC 2012, animal-centered part" for scale in ("small", "medium")}  # of the data set
SCALES = ("small", "medium", "full")
READINGS = {"best": "best reading", "printed": "as printed"}
STARTS = {"imagenet": "from ImageNet weights", "random": "from random weights"}


@dataclass(frozen=True)
class Table:
    """Text in rows, each as long as the head. The first column names the rows."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


class Setting(NamedTuple):
    """What runs must have in common to be compared."""

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
        """Whether it is the setting in which all cells are run on every data set."""
        return (self.reading, self.start) == ("best", "imagenet")

    def rank(self) -> tuple:
        dataset = (*DATASETS, self.dataset).index(self.dataset), self.dataset
        return self.reading != "best", self.start != "imagenet", SCALES.index(self.scale), dataset


class Block:
    """The runs of one table in one setting; may be empty."""

    def __init__(self, number: int, rows: list[dict]):
        self.rows, self.shares = rows, SHARES[number]
        names = dict.fromkeys(row["cell"] for row in rows)
        self.cells = sorted(names, key=lambda cell: CELLS[number].index(cell) if cell in CELLS[number] else len(CELLS[number]))

    @property
    def run_shares(self) -> list[str]:
        """The shares with at least one run."""
        shares = {row["share"] for row in self.rows}
        return [share for share in self.shares if share in shares]

    def runs(self, cell: str, share: str) -> dict[str, dict]:
        """Rows by seed."""
        return {row["seed"]: row for row in self.rows if (row["cell"], row["share"]) == (cell, share)}

    def scores(self, cell: str, share: str) -> list[float]:
        """Mean IoU of each seed."""
        return [100 * float(row["mean_iou"]) for row in self.runs(cell, share).values()]

    def gains(self, cell: str, baseline: str, share: str) -> dict[str, float]:
        """Differences of mean IoU, by the seeds that both cells have."""
        ours, theirs = self.runs(cell, share), self.runs(baseline, share)
        return {seed: 100 * (float(ours[seed]["mean_iou"]) - float(theirs[seed]["mean_iou"])) for seed in ours if seed in theirs}

    def all_of(self, column: str, separator: str = " ") -> str:
        """The different values of a column; one row holds several where its runs differ."""
        return " and ".join(sorted({value for row in self.rows for value in row[column].split(separator)}))

    def headline(self, share: str, gap: str = " ") -> str:
        """A share, and its number of masks where that is in the rows."""
        counts = {row["train_count"] for row in self.rows if row["share"] == share} - {"all"}
        return f"{share}{gap}({counts.pop()})" if counts else share

    def by_share(self, cell: str, text: Callable[[list[dict]], str]) -> str:
        """The text of a cell's runs: one where all shares have the same, else one for each share."""
        texts = [text(list(runs.values())) for share in self.shares if (runs := self.runs(cell, share))]
        return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

    def passes(self, cell: str) -> str:
        """Passes of images through the network, in pre-training + in fine-tuning."""
        return self.by_share(cell, lambda runs: f"{int(runs[0]['pretrain_passes']):,} + {int(runs[0]['finetune_passes']):,}")


def read_tables(results_dir: Path) -> dict[int, list[dict]]:
    """The rows of each table that has any."""
    rows = {number: read_csv(Path(results_dir) / f"table{number}.csv") for number in SHARES}
    return {number: of_table for number, of_table in rows.items() if of_table}


def blocks(rows_by_table: dict[int, list[dict]], subset: str | None = "0") -> dict[Setting, dict[int, Block]]:
    """The runs by setting and table, best reading from ImageNet weights first. subset: of the masks; None = all subsets."""
    by_setting: dict[Setting, dict[int, list[dict]]] = {}
    for number, rows in rows_by_table.items():
        for row in rows:
            if subset in (None, row["subset_seed"]):
                setting = Setting(*(row[name] for name in Setting._fields))
                by_setting.setdefault(setting, {}).setdefault(number, []).append(row)
    settings = sorted(by_setting, key=Setting.rank)
    return {setting: {number: Block(number, by_setting[setting].get(number, [])) for number in SHARES} for setting in settings}


def has_paper_rows(tables: dict[int, Block]) -> bool:
    """Whether all rows of the paper's three tables were run in one setting."""
    return all(set(PAPER_CELLS[number]) <= set(block.cells) for number, block in tables.items())


def fraction(share: str) -> Fraction:
    return Fraction(1 if share == "all" else share)


def pooled_sd(*samples: Sequence[float]) -> float | None:
    """Sample deviation around each sample's own mean; None where no sample has two numbers."""
    freedom = sum(len(sample) - 1 for sample in samples)
    return (sum(statistics.variance(s) * (len(s) - 1) for s in samples if len(s) > 1) / freedom) ** 0.5 if freedom else None

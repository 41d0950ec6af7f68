"""What became of the paper's claims: hypotheses, the order of its figures, targets, from the runs of its three tables."""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from benchmark import difference, interval
from tables_data import SHARES, SUMS, Block, Setting, Table, part, pooled_sd, shown

VERDICTS = ("contradicted", "not supported", "open", "supported")  # the first that occurs in a claim's parts is the claim's
ORDERING = "The paper's ordering"
RULES = (
    "H1, H5: supported when the 95 % t interval of the paired differences lies above 0, contradicted when below, else not supported. "
    "H2: of gain at all masks minus gain at 1/10, paired by seed: supported when its mean is at most 0, contradicted when its interval "
    "lies above 0, else not supported. H3, H4: supported when the mean is behind none of the others by more than one pooled sample "
    "deviation, contradicted when behind one of them by more than two, else not supported. A claim of several parts is as good as its "
    "worst part. open: cells are missing, or there are not two seeds. Ordering: ≥ allows for one pooled sample deviation (for nothing, "
    "where there are no two seeds), > for nothing; strictly: the higher mean."
)


class Claims(NamedTuple):
    """What became of the paper's claims in one setting; what was not run at all is in neither."""

    answers: dict[str, str]  # by claim
    tables: list[Table]


def claims(tables: dict[int, Block]) -> Claims:
    """From the blocks of one setting, by table."""
    counts, losses, methods = (tables[number] for number in SHARES)
    parts = ((_of_label_counts, counts), (_of_losses, losses), (_of_methods, methods))
    hypotheses = [row for of_table, block in parts if block.rows for row in of_table(block)]
    answers = {claim: answer for claim, _, answer in hypotheses}
    found = [Table("Hypotheses", ("claim", "figures", "answer"), hypotheses)]
    fifteen = [*_ordering_of_losses(losses), *_ordering_of_methods(methods, "1/5")]
    head = ("comparison", "left", "right, its best", "holds", "strictly")
    if any(row[3] != "-" for row in fifteen):
        answers[ORDERING] = _score(fifteen)
        found.append(Table(f"{ORDERING}: {answers[ORDERING]}", head, fifteen))
    if methods.rows:
        found.append(Table("Table 3 with all masks, not counted", head, _ordering_of_methods(methods, "all")))
    if counts.rows:
        found.append(Table("Targets, 1/10 of the masks", ("difference", "paired (95 % interval)", "seeds"), _targets(counts)))
    return Claims(answers, found)


def agreement(said: dict[Setting, Claims]) -> Table:
    """What became of each claim in each setting."""
    names = sorted({name for of in said.values() for name in of.answers})
    rows = [(name, *(of.answers.get(name, "-") for of in said.values())) for name in names]
    return Table("Answers by setting", ("claim", *map(str, said)), rows)


# The rules


def above_zero(gains: dict[str, float]) -> str:
    """Is a difference, paired by seed, above 0?"""
    if len(gains) < 2:
        return "open"
    _, low, high = interval(list(gains.values()))
    return "supported" if low > 0 else "contradicted" if high < 0 else "not supported"


def not_growing(growth: dict[str, float]) -> str:
    """Is the gain with many masks at most that with few?"""
    grows = above_zero(growth)
    if grows in ("open", "supported"):
        return "open" if grows == "open" else "contradicted"
    return "supported" if statistics.mean(growth.values()) <= 0 else "not supported"


def not_behind(ours: list[float], theirs: list[float]) -> str:
    """Is one mean as good as another, but for one pooled sample deviation?"""
    sd = pooled_sd(ours, theirs) if ours and theirs else None
    if sd is None:
        return "open"
    behind = statistics.mean(theirs) - statistics.mean(ours)
    return "supported" if behind <= sd else "contradicted" if behind > 2 * sd else "not supported"


def worst(verdicts: Iterable[str]) -> str:
    return min(verdicts, key=VERDICTS.index, default="open")


# The hypotheses: rows of claim, figures, answer


def _of_label_counts(block: Block) -> list[tuple]:
    """H1, H2 from table 1."""
    gains = {share: block.gains("mscl", "none", share) for share in block.shares}
    few, late = [gains["1/10"], gains["1/5"]], gains["all"]
    growth = {seed: late[seed] - few[0][seed] for seed in late if seed in few[0]}
    each = [f"{share}: {_told(gain)}" for share, gain in gains.items()]
    points = [(math.log2(part(share)), gain) for share in gains for gain in gains[share].values()]
    slope = f"{statistics.linear_regression(*zip(*points)).slope:+.1f}" if len({x for x, _ in points}) > 1 else "-"
    rise = f"all minus 1/10: {_told(growth)}; slope over a doubling of the masks: {slope}"
    return [
        ("H1: mscl above none at 1/10 and 1/5 of the masks", "; ".join(each[:2]), worst(map(above_zero, few))),
        ("H2: the gain of mscl over none does not grow with the masks", "; ".join([*each, rise]), not_growing(growth)),
        *(_against(block, other) for other in ("imagenet", "none_long", "imagenet_long") if other in block.cells),
    ]


def _against(block: Block, other: str) -> tuple:
    """Not among the five, and harder than H1: the method against its own starting weights, and against as many passes of fine-tuning."""
    gains = {share: block.gains("mscl", other, share) for share in ("1/10", "1/5")}
    gains = {share: gain for share, gain in gains.items() if gain}
    text = "; ".join(f"{share}: {_told(gain)}" for share, gain in gains.items())
    return f"beside H1: mscl above {other}", text or "-", worst(map(above_zero, gains.values()))


def _of_losses(block: Block) -> list[tuple]:
    """H3, H4 from table 2."""
    scores = {cell: block.scores(cell, "1/2") for cell in ("g", "l", "p", "g+l+p")}
    rows = []
    for claim, cell, others in (("H3: g+l+p not behind g, l, p", "g+l+p", "glp"), ("H4: p not behind g, l", "p", "gl")):
        text = ", ".join(f"{name} {shown(scores[name])}" for name in (cell, *others))
        rows.append((claim, text, worst(not_behind(scores[cell], scores[other]) for other in others)))
    return rows


def _of_methods(block: Block) -> list[tuple]:
    """H5 from both shares of table 3."""
    gains = {share: block.gains("mscl", "simclr", share) for share in block.shares}
    text = [f"{share}: {_told(gain)}" for share, gain in gains.items() if gain]
    if text:
        text.append(f"passes {block.passes('mscl')} against {block.passes('simclr')}")
    return [("H5: mscl above simclr at equal passes", "; ".join(text) or "-", worst(map(above_zero, gains.values())))]


def _told(gains: dict[str, float]) -> str:
    return f"{difference(list(gains.values()))}, n = {len(gains)}" if gains else "-"


# The fifteen comparisons, and the targets


def _ordering_of_losses(block: Block) -> list[tuple]:
    """Eleven comparisons: each sum above none, each sum not behind its parts."""
    rows = [_comparison(block, "1/2", cell, ["none"], ">") for cell in ("g", "l", "p", *SUMS, "g+l+p")]
    parts = {**SUMS, "g+l+p": [*SUMS, "g", "l", "p"]}
    return rows + [_comparison(block, "1/2", cell, list(others), "≥") for cell, others in parts.items()]


def _ordering_of_methods(block: Block, share: str) -> list[tuple]:
    return [_comparison(block, share, "mscl", [other], ">" if other == "none" else "≥") for other in ("none", "simclr", "aaf", "rmi")]


def _comparison(block: Block, share: str, cell: str, others: list[str], relation: str) -> tuple:
    """A row: what is compared, both figures, does it hold, does it hold strictly."""
    name = f"{share}: {cell} {relation} {others[0] if len(others) == 1 else 'best of ' + ', '.join(others)}"
    ours, theirs = block.scores(cell, share), {other: block.scores(other, share) for other in others}
    if not ours or not all(theirs.values()):
        return name, shown(ours), "-", "-", "-"
    best = max(others, key=lambda other: statistics.mean(theirs[other]))
    lead = statistics.mean(ours) - statistics.mean(theirs[best])
    strictly = lead > 0
    holds = strictly or (relation == "≥" and lead >= -(pooled_sd(ours, theirs[best]) or 0))
    return name, shown(ours), f"{best} {shown(theirs[best])}", "yes" if holds else "no", "yes" if strictly else "no"


def _score(comparisons: list[tuple]) -> str:
    holds, strictly, missing = ([row[column] for row in comparisons].count(word) for column, word in ((3, "yes"), (4, "yes"), (3, "-")))
    return f"{holds} of {len(comparisons)} comparisons hold, {strictly} strictly" + (f", {missing} not run" if missing else "")


def _targets(block: Block) -> list[tuple]:
    pairs = [("mscl", other) for other in ("none", "none_long", "imagenet", "imagenet_long")] + [("mscl_unlabelled", "mscl")]
    found = [(f"{cell} minus {other}", block.gains(cell, other, "1/10")) for cell, other in pairs]
    return [(name, difference(list(gains.values())), str(len(gains))) for name, gains in found]

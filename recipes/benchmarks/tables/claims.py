"""Answers to the paper's claims (hypotheses, the order of its figures, targets) from the runs of its three tables."""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from ..common import difference, interval, mean_sd
from .rows import SHARES, SUMS, Block, Setting, Table, fraction, pooled_sd

VERDICTS = ("contradicted", "not supported", "open", "supported")  # a claim of several parts has the first verdict among them
ORDERING = "The paper's ordering"
RULES = (
    "H1, H5: supported when the 95 % t interval of the paired differences is above 0, contradicted when it is below 0, else not "
    "supported. H2: the gain with all masks minus the gain with 1/10, paired by seed: supported when its mean is at most 0, contradicted "
    "when its interval is above 0, else not supported. H3, H4: supported when the mean is at most one pooled sample deviation below each "
    "of the others, contradicted when it is more than two below one of them, else not supported. A claim of several parts has the worst "
    "verdict of its parts. open: runs are missing, or there are fewer than two seeds. Ordering: ≥ allows for one pooled sample deviation "
    "(for nothing with a single seed), > for nothing; strictly: the higher mean."
)


class Claims(NamedTuple):
    """Answers to the paper's claims in one setting; claims without any run are left out."""

    answers: dict[str, str]  # by claim
    tables: list[Table]


def claims(tables: dict[int, Block]) -> Claims:
    """The answers from the three blocks of one setting."""
    counts, losses, methods = (tables[number] for number in SHARES)
    parts = ((_label_count_claims, counts), (_loss_claims, losses), (_method_claims, methods))
    hypotheses = [row for rows_of, block in parts if block.rows for row in rows_of(block)]
    answers = {claim: answer for claim, _, answer in hypotheses}
    results = [Table("Hypotheses", ("claim", "figures", "answer"), hypotheses)]
    comparisons = [*_loss_comparisons(losses), *_method_comparisons(methods, "1/5")]
    head = ("comparison", "left", "right, its best", "holds", "strictly")
    if any(row[3] != "-" for row in comparisons):
        answers[ORDERING] = _score(comparisons)
        results.append(Table(f"{ORDERING}: {answers[ORDERING]}", head, comparisons))
    if methods.rows:
        results.append(Table("Table 3 with all masks, not counted", head, _method_comparisons(methods, "all")))
    if counts.rows:
        results.append(Table("Targets, 1/10 of the masks", ("difference", "paired (95 % interval)", "seeds"), _targets(counts)))
    return Claims(answers, results)


def agreement(by_setting: dict[Setting, Claims]) -> Table:
    """The answer to each claim in each setting."""
    names = sorted({name for found in by_setting.values() for name in found.answers})
    rows = [(name, *(found.answers.get(name, "-") for found in by_setting.values())) for name in names]
    return Table("Answers by setting", ("claim", *map(str, by_setting)), rows)


# The rules


def above_zero(gains: dict[str, float]) -> str:
    """Whether a difference, paired by seed, is above 0."""
    if len(gains) < 2:
        return "open"
    _, low, high = interval(list(gains.values()))
    return "supported" if low > 0 else "contradicted" if high < 0 else "not supported"


def not_growing(growth: dict[str, float]) -> str:
    """Whether the gain with many masks is at most that with few. growth: the difference of the two gains by seed."""
    grows = above_zero(growth)
    if grows in ("open", "supported"):
        return "open" if grows == "open" else "contradicted"
    return "supported" if statistics.mean(growth.values()) <= 0 else "not supported"


def not_behind(ours: list[float], theirs: list[float]) -> str:
    """Whether a mean is at most one pooled sample deviation below another."""
    sd = pooled_sd(ours, theirs) if ours and theirs else None
    if sd is None:
        return "open"
    behind = statistics.mean(theirs) - statistics.mean(ours)
    return "supported" if behind <= sd else "contradicted" if behind > 2 * sd else "not supported"


def worst(verdicts: Iterable[str]) -> str:
    return min(verdicts, key=VERDICTS.index, default="open")


# The hypotheses: rows of claim, figures, answer


def _label_count_claims(block: Block) -> list[tuple]:
    """H1 and H2, from table 1."""
    gains = {share: block.gains("mscl", "none", share) for share in block.shares}
    few, late = [gains["1/10"], gains["1/5"]], gains["all"]
    growth = {seed: late[seed] - few[0][seed] for seed in late if seed in few[0]}
    texts = [f"{share}: {_in_words(gain)}" for share, gain in gains.items()]
    points = [(math.log2(fraction(share)), gain) for share in gains for gain in gains[share].values()]
    slope = f"{statistics.linear_regression(*zip(*points)).slope:+.1f}" if len({x for x, _ in points}) > 1 else "-"
    rise = f"all minus 1/10: {_in_words(growth)}; slope over a doubling of the masks: {slope}"
    return [
        ("H1: mscl above none at 1/10 and 1/5 of the masks", "; ".join(texts[:2]), worst(map(above_zero, few))),
        ("H2: the gain of mscl over none does not grow with the masks", "; ".join([*texts, rise]), not_growing(growth)),
        *(_against(block, baseline) for baseline in ("imagenet", "none_long", "imagenet_long") if baseline in block.cells),
    ]


def _against(block: Block, baseline: str) -> tuple:
    """A harder claim than H1, not of the paper: above the starting weights, or above as many passes of fine-tuning."""
    gains = {share: block.gains("mscl", baseline, share) for share in ("1/10", "1/5")}
    gains = {share: gain for share, gain in gains.items() if gain}
    text = "; ".join(f"{share}: {_in_words(gain)}" for share, gain in gains.items())
    return f"beside H1: mscl above {baseline}", text or "-", worst(map(above_zero, gains.values()))


def _loss_claims(block: Block) -> list[tuple]:
    """H3 and H4, from table 2."""
    scores = {cell: block.scores(cell, "1/2") for cell in ("g", "l", "p", "g+l+p")}
    rows = []
    for claim, cell, others in (("H3: g+l+p not behind g, l, p", "g+l+p", "glp"), ("H4: p not behind g, l", "p", "gl")):
        text = ", ".join(f"{name} {mean_sd(scores[name])}" for name in (cell, *others))
        rows.append((claim, text, worst(not_behind(scores[cell], scores[other]) for other in others)))
    return rows


def _method_claims(block: Block) -> list[tuple]:
    """H5, from both shares of table 3."""
    gains = {share: block.gains("mscl", "simclr", share) for share in block.shares}
    texts = [f"{share}: {_in_words(gain)}" for share, gain in gains.items() if gain]
    if texts:
        texts.append(f"passes {block.passes('mscl')} against {block.passes('simclr')}")
    return [("H5: mscl above simclr at equal passes", "; ".join(texts) or "-", worst(map(above_zero, gains.values())))]


def _in_words(gains: dict[str, float]) -> str:
    return f"{difference(list(gains.values()))}, n = {len(gains)}" if gains else "-"


# The fifteen comparisons, and the targets


def _loss_comparisons(block: Block) -> list[tuple]:
    """Eleven comparisons: each sum of losses is above none, and not behind its parts."""
    rows = [_comparison(block, "1/2", cell, ["none"], ">") for cell in ("g", "l", "p", *SUMS, "g+l+p")]
    parts = {**SUMS, "g+l+p": [*SUMS, "g", "l", "p"]}
    return rows + [_comparison(block, "1/2", cell, list(others), "≥") for cell, others in parts.items()]


def _method_comparisons(block: Block, share: str) -> list[tuple]:
    return [_comparison(block, share, "mscl", [other], ">" if other == "none" else "≥") for other in ("none", "simclr", "aaf", "rmi")]


def _comparison(block: Block, share: str, cell: str, others: list[str], relation: str) -> tuple:
    """A row: what is compared, both figures, whether the relation holds, whether it holds strictly."""
    name = f"{share}: {cell} {relation} {others[0] if len(others) == 1 else 'best of ' + ', '.join(others)}"
    ours, theirs = block.scores(cell, share), {other: block.scores(other, share) for other in others}
    if not ours or not all(theirs.values()):
        return name, mean_sd(ours), "-", "-", "-"
    best = max(others, key=lambda other: statistics.mean(theirs[other]))
    lead = statistics.mean(ours) - statistics.mean(theirs[best])
    is_strict = lead > 0
    holds = is_strict or (relation == "≥" and lead >= -(pooled_sd(ours, theirs[best]) or 0))
    return name, mean_sd(ours), f"{best} {mean_sd(theirs[best])}", "yes" if holds else "no", "yes" if is_strict else "no"


def _score(comparisons: list[tuple]) -> str:
    holds, strictly, missing = ([row[column] for row in comparisons].count(word) for column, word in ((3, "yes"), (4, "yes"), (3, "-")))
    return f"{holds} of {len(comparisons)} comparisons hold, {strictly} strictly" + (f", {missing} not run" if missing else "")


def _targets(block: Block) -> list[tuple]:
    pairs = [("mscl", other) for other in ("none", "none_long", "imagenet", "imagenet_long")] + [("mscl_unlabelled", "mscl")]
    pairs += [("semi", "imagenet_long"), ("mscl_semi", "mscl"), ("mscl_semi", "semi")]
    gains = {f"{cell} minus {other}": list(block.gains(cell, other, "1/10").values()) for cell, other in pairs}
    return [(name, difference(values), str(len(values))) for name, values in gains.items()]

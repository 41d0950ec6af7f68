"""Markdown, pictures and an HTML page from the CSV files of the paper's three tables.

Every figure is in a `Table`, which Markdown and the page show alike.
"""

import base64
from collections import defaultdict
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ..common import CONFIGS, difference, markdown_table, mean_sd
from .claims import RULES, VERDICTS, agreement, claims
from .figures import draw
from .paper import FACTS, PAPER
from .rows import Block, Setting, Table, blocks, has_paper_rows, read_tables

TITLES = {1: "mean IoU by the number of masks", 2: "the losses and their sums", 3: "beside other methods"}
HOW = (
    "Mean IoU in %, mean ± sample deviation over seeds; differences are paired by seed, with their 95 % t interval. Columns: the share of "
    "the masks that are used, with their number in brackets. passes: views in pre-training + images in fine-tuning. Values that differ "
    "between shares are separated by a slash, in the order of the shares."
)
KEY = (
    "none: random weights, in all tables. imagenet: the weights that pre-training starts from, without pre-training. "
    "_long: as many more images in fine-tuning, instead of pre-training. mscl: the paper's method, with the losses g + l + p "
    "(global, local, pixel). mscl_unlabelled: the same, with unlabelled images in g and l. "
    "semi: imagenet, fine-tuned with an EMA teacher on as many images without masks, in as many passes as imagenet_long; mscl_semi: so "
    "after mscl, in as many passes as mscl. "
    "aaf, rmi: no pre-training, and another loss in fine-tuning. Other names: pre-training by that method. "
    "mscl, with any losses, and the methods of Zhao et al. were pre-trained on the images whose masks are used; the other methods, "
    "which read no masks, on all training images."
)


# The tables


def measured(number: int, rows_by_table: dict[int, list[dict]]) -> list[Table]:
    """One of the three tables, in all settings."""
    return [table for setting, tables in blocks(rows_by_table).items() for table in compared(number, setting, tables[number])]


def compared(number: int, setting: Setting, block: Block) -> list[Table]:
    """Means and differences to `none` of the shares that were run, in one table, or in two where there are three shares or more."""
    if not block.rows:
        return []
    means, gains, facts = {}, {}, {}
    for share in block.run_shares:
        means[block.headline(share)] = [mean_sd(block.scores(cell, share)) for cell in block.cells]
        values = [list(block.gains(cell, "none", share).values()) for cell in block.cells]
        gains[f"{share}, minus none"] = ["-" if cell == "none" else difference(pairs) for cell, pairs in zip(block.cells, values)]
    if number == 3:
        facts["masks in pre-training"] = [block.by_share(cell, lambda runs: runs[0]["labels"]) for cell in block.cells]
    facts["passes"] = [block.passes(cell) for cell in block.cells]
    facts["seeds"] = [block.by_share(cell, lambda runs: str(len(runs))) for cell in block.cells]
    split, count, pixels, commit, torch = map(block.all_of, ("split", "num_images", "image_size", "commit", "torch"))
    origin = f"commit {commit}, torch {torch}, {block.all_of('machine', '; ')}"
    note = f"Measured on {split}, {count} images; crops of {pixels} px in training; {origin}."
    if len(block.run_shares) < 3:
        return [_columns(str(setting), block, means | gains | facts, note)]
    return [_columns(str(setting), block, means | facts), _columns(f"{setting}: differences", block, gains, note)]


def other_subsets(rows: list[dict]) -> list[Table]:
    """Scores over several subsets of the masks, of the cells that were run with more than one, with seed 0."""
    tables = []
    for setting, by_table in blocks({1: [row for row in rows if row["seed"] == "0"]}, subset=None).items():
        scores = defaultdict(dict)
        for row in by_table[1].rows:
            if row["share"] != "all":
                scores[row["cell"], row["share"]][row["subset_seed"]] = 100 * float(row["mean_iou"])
        several = {key: list(by_subset.values()) for key, by_subset in scores.items() if len(by_subset) > 1}
        lines = [(cell, share, str(len(values)), mean_sd(values)) for (cell, share), values in several.items()]
        head = ("cell", "masks", "subsets", "mean ± deviation over subsets")
        tables += [Table(f"{setting}: other masks", head, lines, "One seed; each subset is drawn independently.")] if lines else []
    return tables


def per_class(rows: list[dict]) -> list[Table]:
    """IoU of every class with a tenth of the masks, means over seeds."""
    tables = []
    for setting, by_table in blocks({1: rows}).items():
        runs = {cell: by_table[1].runs(cell, "1/10").values() for cell in by_table[1].cells}
        iou = {cell: [dict(pair.split("=") for pair in run["per_class_iou"].split(";")) for run in of] for cell, of in runs.items() if of}
        names = list(dict.fromkeys(name for of in iou.values() for run in of for name in run))
        lines = [(name, *(mean_sd([100 * float(run[name]) for run in of if name in run]) for of in iou.values())) for name in names]
        tables += [Table(f"{setting}: classes, 1/10 of the masks", ("class", *iou), lines)] if lines else []
    return tables


def _columns(title: str, block: Block, columns: dict[str, list[str]], note: str = "") -> Table:
    return Table(title, ("cell", *columns), list(zip(block.cells, *columns.values())), note)


# Markdown


def write_tables(results_dir: Path, command: str) -> None:
    """Write table1.md, table1.png and so on beside the CSV files, hypotheses.md and paper.md. command: named as the origin."""
    results_dir, rows = Path(results_dir), read_tables(results_dir)
    for number in rows:
        parts = [f"# Table {number}: {TITLES[number]}\n", f"Made by `{command}`.\n", f"{HOW}\n", f"{KEY}\n"]
        parts.append(f"![table {number} as a picture](table{number}.png)\n")
        more = (*other_subsets(rows[1]), *per_class(rows[1])) if number == 1 else ()
        parts += [markdown(table) for table in (*measured(number, rows), *PAPER[number], *more)]
        (results_dir / f"table{number}.md").write_text("\n".join(parts), encoding="utf-8")
        draw(number, rows[number], results_dir / f"table{number}.png")
    if rows:
        (results_dir / "hypotheses.md").write_text(f"# The paper's claims\n\nMade by `{command}`.\n\n{hypotheses(rows)}", encoding="utf-8")
        (results_dir / "paper.md").write_text(markdown(FACTS, "#"), encoding="utf-8")


def hypotheses(rows_by_table: dict[int, list[dict]]) -> str:
    """Markdown: in every setting each claim with its figures and one of VERDICTS, the fifteen comparisons, the targets."""
    parts = [f"{HOW}\n", f"{KEY}\n", f"{RULES}\n"]
    for setting, tables in blocks(rows_by_table).items():
        parts += [f"## {setting}\n", *(markdown(table, "###") for table in claims(tables).tables)]
    return "\n".join(parts)


def markdown(table: Table, level: str = "##") -> str:
    note = [f"\n{table.note}"] if table.note else []
    return "\n".join([f"{level} {table.title}\n", *markdown_table(table.head, table.rows), *note]) + "\n"


# The page


def write_page(results_dir: Path, strips: list[Path], target: Path) -> None:
    """Write one self-contained HTML file: the tables beside the paper's, pictures, claims, and strips (PNG) of images and predictions.

    Settings other than the main one that lack rows of the paper have no claims on the page: nearly all would be open.
    """
    rows = read_tables(results_dir)
    if not rows:
        raise ValueError(f"{results_dir} has no row in table1.csv, table2.csv or table3.csv. Run the tables first.")
    settings = blocks(rows)
    answered = {setting: claims(tables) for setting, tables in settings.items() if setting.is_main() or has_paper_rows(tables)}
    environment = Environment(loader=FileSystemLoader(CONFIGS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("tables_page.html").render(
        sections=[_section(number, rows) for number in rows], claims=answered, agreement=agreement(answered),
        left_out=[setting for setting in settings if setting not in answered],
        strips=[_embedded(path.stem, path.read_bytes()) for path in map(Path, strips)],
        how=HOW, key=KEY, rules=RULES, verdicts=VERDICTS, facts=FACTS, small=any(setting.scale == "small" for setting in settings),
    )  # fmt: skip
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(text, encoding="utf-8")


def _section(number: int, rows_by_table: dict[int, list[dict]]) -> dict:
    picture = BytesIO()
    draw(number, rows_by_table[number], picture)
    section = {"number": number, "title": TITLES[number], "picture": _embedded(f"table{number}", picture.getvalue())}
    return section | {"ours": measured(number, rows_by_table), "paper": PAPER[number]}


def _embedded(name: str, png: bytes) -> dict[str, str | int]:
    """A picture as a data URL, with its name and its size in px."""
    width, height = Image.open(BytesIO(png)).size
    src = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"name": name.replace("_", " "), "src": src, "width": width, "height": height}

"""The report of the paper's tables: figures of made-up runs, every outcome of the answers, pictures, the page."""

import base64
import csv
import html
import re
import shutil
import statistics
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from recipes.benchmarks.common import interval
from recipes.benchmarks.tables import claims as tables_claims
from recipes.benchmarks.tables import figures, report
from recipes.benchmarks.tables import rows as data

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COUNTS = {"1/10": "37", "1/5": "73", "1/2": "184", "all": "all"}
LABELS = {"mscl": "yes", "simclr": "no"}
VOID = {"meta", "img", "br", "hr", "link", "input"}


def runs(cells, share, **changes):
    """Rows of a CSV file from {cell: mean IoU in % of seeds 0, 1, ...}."""
    rows = []
    for cell, scores in cells.items():
        for seed, score in enumerate(scores):
            row = {"dataset": "camvid", "scale": "small", "reading": "best", "start": "imagenet", "cell": cell, "share": share}
            row |= {"seed": str(seed), "mean_iou": f"{score / 100:.5f}", "train_count": COUNTS[share], "labels": LABELS.get(cell, "-")}
            row |= {"pretrain_passes": "26400" if cell in LABELS else "0", "finetune_passes": "2400", "split": "test", "num_images": "233"}
            row |= {"subset_seed": "0", "per_class_iou": f"sky={score / 100:.4f};road={score / 200:.4f}"}
            rows.append(row | {"image_size": "96", "commit": "abc", "torch": "2.15", "machine": "a machine, 2 cores"} | changes)
    return rows


def around(mean, sd=0.5):
    """Three scores with this mean and sample deviation."""
    return [mean - sd, mean, mean + sd]


LOSSES = dict(zip(("none", "g", "l", "p", "g+l", "g+p", "l+p", "g+l+p"), 36 + 0.02 * np.arange(8)))
METHODS = dict(zip(("none", "simclr", "aaf", "rmi", "mscl"), 36 + 0.02 * np.arange(5)))


def ordered(**changes):
    """Runs in the paper's order, in small steps, deviation 0.5. changes: other means, of table 3 by name, of table 2 as `losses`."""
    losses = {cell: around(mean) for cell, mean in (LOSSES | changes.pop("losses", {})).items()}
    methods = {cell: around(mean) for cell, mean in (METHODS | changes).items()}
    return {2: runs(losses, "1/2"), 3: runs(methods, "1/5")}


def claims_of(rows_by_table):
    (tables,) = data.blocks(rows_by_table).values()
    return tables_claims.claims(tables)


def answer(claim, rows_by_table):
    (verdict,) = [verdict for name, verdict in claims_of(rows_by_table).answers.items() if name.startswith(claim)]
    return verdict


def ordering(rows_by_table):
    """The answer from the fifteen comparisons, and their rows."""
    claims = claims_of(rows_by_table)
    (table,) = [table for table in claims.tables if table.title.startswith(tables_claims.ORDERING)]
    return claims.answers[tables_claims.ORDERING], table.rows


def write(folder, rows_by_table):
    for number, rows in rows_by_table.items():
        with (folder / f"table{number}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All three tables in two settings, with gaps, single seeds and an unknown method: CSV files and the report."""
    folder = tmp_path_factory.mktemp("results")
    one = runs({"mscl": [24, 26, 28], "none": [20, 21, 22]}, "1/10") + runs({"none": around(30)}, "1/5")
    one += runs({"mscl": [44]}, "all") + runs({"none": [39, 41]}, "all") + runs({"none": [50], "mscl": [60]}, "1/10", start="random")
    two = runs({cell: around(mean) for cell, mean in LOSSES.items() if cell != "g+l"}, "1/2")
    three = runs({cell: around(mean) for cell, mean in METHODS.items()}, "1/5") + runs({"a_new<method>": [33]}, "all")
    write(folder, {1: one, 2: two, 3: three})
    report.write_tables(folder, "python -m recipes.benchmarks tables")
    return folder


def test_interval_and_pooled_deviation():
    """As in textbooks: t of 2 degrees of freedom is 4.303; a single number does not change a pooled deviation."""
    mean, low, high = interval([1, 2, 3])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert data.pooled_sd([1, 2, 3], [9]) == 1 and data.pooled_sd([1, 3], [2, 2]) == 1 and data.pooled_sd([1], [2]) is None


def test_tables_hold_means_deviations_and_paired_differences(folder):
    """Rows are in the paper's order; missing runs are "-", shares without any run are left out; settings have separate tables."""
    one, two, three = ((folder / f"table{number}.md").read_text() for number in (1, 2, 3))
    assert "Made by `python -m recipes.benchmarks tables`" in one and "| cell | 1/10 (37) | 1/5 (73) | all | passes | seeds |" in one
    assert "| none | 21.0 ± 1.0 | 30.0 ± 0.5 | 40.0 ± 1.4 | 0 + 2,400 | 3 / 3 / 2 |\n| mscl | 26.0 ± 2.0 | - | 44.0 | " in one
    assert "| mscl | +5.0 (+2.5 to +7.5) | - | +5.0 |" in one  # 4, 5, 6; seed 0 alone has both at all masks
    assert "| mscl | 60.0 | +10.0 | 26,400 + 2,400 | 1 |" in one
    assert one.index("from ImageNet weights") < one.index("from random weights") < one.index("The paper")
    assert "| ours | 57.8 | 61.9 | 64.2 | 66.7 |" in one and "| random | 48.2 | 54.6 | 60.8 | 63.5 |" in one
    assert "| g+l+p | 36.1 ± 0.5 | +0.1 (+0.1 to +0.1) | 0 + 2,400 | 3 |" in two and "| g+l+p | 72.8 | 64.2 |" in two
    assert "from random weights" not in two + three
    assert re.findall(r"^\| (\S+)", three.split("Measured on")[0], re.M)[2:] == [*METHODS, "a_new<method>"]
    assert "| mscl | 36.1 ± 0.5 | - | +0.1 (+0.1 to +0.1) | - | yes | 26,400 + 2,400 | 3 |" in three and "| SimCLR | 60.8 | 64.3 |" in three


def test_the_papers_figures_are_whole():
    """All figures are present, and agree with the gains in the paper's text and with each other."""
    one, cities = ({row[0]: [float(cell) for cell in row[1:]] for row in table.rows} for table in report.PAPER[1])
    two, three = ({row[0]: [float(cell) for cell in row[1:]] for row in report.PAPER[number][0].rows} for number in (2, 3))
    assert [round(a - b, 1) for a, b in zip(cities["ours"], cities["random"])] == [16.1, 13.8, 12.0, 10.0]
    assert [one["ours"][1], one["ours"][3]] == three["ours"] and [one["random"][1], one["random"][3]] == three["random"]
    assert two["g+l+p"] == [cities["ours"][2], one["ours"][2]] and two["none"] == [cities["random"][2], one["random"][2]]
    assert len(two) == 8 and all(a < b for row, after in zip(list(two.values()), list(two.values())[1:]) for a, b in zip(row, after))


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [([4, 5, 6], "supported"), ([-1, 5, 6], "not supported"), ([-4, -5, -6], "contradicted"), ([5], "open"), ([], "open")],
)
def test_h1_and_h5_need_an_interval_above_zero(gains, verdict):
    """The interval of the paired gains over none, or over SimCLR, is above, around or below 0; with one seed or none the claim is open."""
    base, ours = [20, 22, 27], [[20, 22, 27][seed] + gain for seed, gain in enumerate(gains)]  # seeds differ more than methods
    few = runs({"none": base, "mscl": ours}, "1/10") + runs({"none": base, "mscl": [score + 5 for score in base]}, "1/5")
    assert answer("H1", {1: few}) == verdict
    late = runs({"simclr": base, "mscl": ours}, "all")
    assert answer("H5", {3: runs({"simclr": base, "mscl": [score + 5 for score in base]}, "1/5") + late}) == verdict
    assert answer("H5", {3: late}) == (verdict if verdict in tables_claims.VERDICTS[:2] else "open")  # a share was not run


@pytest.mark.parametrize(
    ("late", "verdict"),
    [([1, 2, 3], "supported"), ([4, 9, 1], "supported"), ([4, 9, 7], "not supported"), ([8, 9, 10], "contradicted"), ([4], "open")],
)
def test_h2_compares_the_gains(late, verdict):
    """Gains of 4, 5, 6 with 1/10 are compared with those with all masks, by seed; the slope over the logarithm of the share is given."""
    rows = runs({"none": [20, 20, 20], "mscl": [24, 25, 26]}, "1/10")
    rows += runs({"none": [40, 40, 40], "mscl": [40 + gain for gain in late]}, "all")
    assert answer("H2", {1: rows}) == verdict
    if late == [1, 2, 3]:  # -3 over log2(10) doublings
        assert "slope over a doubling of the masks: -0.9" in claims_of({1: rows}).tables[0].rows[1][1]


@pytest.mark.parametrize(
    ("change", "h3", "h4"),
    [
        ({}, "supported", "supported"),
        ({"l": 36.5}, "supported", "supported"),  # within one pooled deviation, 0.5
        ({"l": 36.8}, "not supported", "not supported"),
        ({"g": 37.5}, "contradicted", "contradicted"),
        ({"p": 37.5}, "contradicted", "supported"),
    ],
)
def test_h3_and_h4_allow_for_the_spread(change, h3, h4):
    """g+l+p against its parts, p against g and l: below them by less than one pooled deviation, by more, by more than two."""
    rows = ordered(losses=change)
    assert (answer("H3", rows), answer("H4", rows)) == (h3, h4)
    single = {2: runs({cell: [mean] for cell, mean in LOSSES.items()}, "1/2")}
    assert answer("H3", single) == "open"


def test_a_claim_has_its_worst_verdict():
    """Supported with one share and contradicted with the other is contradicted."""
    rows = runs({"none": around(20), "mscl": around(25)}, "1/10") + runs({"none": around(30), "mscl": around(25)}, "1/5")
    assert answer("H1", {1: rows}) == "contradicted" and tables_claims.worst(["supported", "open"]) == "open" == tables_claims.worst([])


FAILURES = [
    *({"losses": {cell: 35.95}} for cell in list(LOSSES)[1:]),
    {"losses": {"l": 37, "l+p": 37, "g+l+p": 37, "g+l": 36.3}},
    {"losses": {"p": 37, "l+p": 37, "g+l+p": 37, "g+p": 36.3}},
    {"losses": {"l": 37, "g+l": 37, "g+l+p": 37, "l+p": 36.3}},
    {"losses": {"l+p": 37, "g+l+p": 36.3}},
    {"mscl": 35.95},
    *({other: 36.7} for other in ("simclr", "aaf", "rmi")),
]


@pytest.mark.parametrize("line", range(15))
def test_each_of_the_fifteen_comparisons_fails_alone(line):
    """In the paper's order all hold; a failure changes only its row and the count."""
    score, rows = ordering(ordered())
    assert score == "15 of 15 comparisons hold, 15 strictly" and [row[3] for row in rows] == ["yes"] * 15
    score, rows = ordering(ordered(**FAILURES[line]))
    assert score.startswith("14 of 15 ") and [row[3] for row in rows] == ["no" if i == line else "yes" for i in range(15)]


def test_within_the_spread_holds_but_not_strictly():
    """Less than a pooled deviation below holds, but not strictly; both figures are in the row; one seed allows no deviation."""
    score, rows = ordering(ordered(simclr=36.4))
    assert score == "15 of 15 comparisons hold, 14 strictly"
    assert ("1/5: mscl ≥ simclr", "36.1 ± 0.5", "simclr 36.4 ± 0.5", "yes", "no") in rows
    single = {3: runs({cell: [mean] for cell, mean in (METHODS | {"simclr": 36.4}).items()}, "1/5")}
    assert ("1/5: mscl ≥ simclr", "36.1", "simclr 36.4", "no", "no") in ordering(single)[1]


def test_missing_runs_are_counted(folder):
    """Comparisons without runs are counted separately; those with all masks are not counted; targets are paired; no table, no claims."""
    text = (folder / "hypotheses.md").read_text()
    first, other = text.split("## CamVid")[1:]
    assert "from ImageNet weights" in first.splitlines()[0] and "from random weights" in other.splitlines()[0]
    assert "12 of 15 comparisons hold, 12 strictly, 3 not run" in first and "| 1/2: g+l > none | - | - | - | - |" in first
    assert "| all: mscl > none | - | - | - | - |" in first and "| mscl minus none | +5.0 (+2.5 to +7.5) | 3 |" in first
    assert "| mscl_unlabelled minus mscl | - | 0 |" in first
    assert "H3" not in other and "ordering" not in other and "H1" in other
    assert text.split("\n## ")[0].count("supported when") == 3  # the rules


def test_without_tables_there_is_no_report(tmp_path):
    """Without CSV files no file is written, and the page is an error."""
    report.write_tables(tmp_path, "command")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="Run the tables first"):
        report.write_page(tmp_path, [], tmp_path / "page.html")


def test_equal_methods_pass_most_comparisons():
    """As results/README.md states: if all rows but random weights are equal, 13.5 of the fifteen comparisons hold on average."""
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        draws = {cell: rng.normal(18 if cell == "none" else 35, 1, 3) for cell in (*LOSSES, *METHODS)}
        by_table = {2: runs({cell: draws[cell] for cell in LOSSES}, "1/2"), 3: runs({cell: draws[cell] for cell in METHODS}, "1/5")}
        held.append([[row[column] for row in ordering(by_table)[1]].count("yes") for column in (3, 4)])
    loosely, strictly = np.transpose(held)
    assert (np.mean(loosely), np.mean(strictly)) == pytest.approx((13.5, 10.6), abs=0.3)
    assert np.mean(loosely >= 12) == pytest.approx(0.92, abs=0.04)


def test_facts_about_the_paper_follow_from_its_tables(folder):
    """Figures in the facts are computed from the printed tables; Markdown and page have the same rows."""
    facts = {where: f"{printed}; {follows}" for where, printed, follows in report.FACTS.rows}
    one, cities = ({row[0]: list(map(float, row[1:])) for row in table.rows} for table in report.PAPER[1])
    gains = [f"+{ours - none:.1f} " for ours, none in zip(cities["ours"], cities["random"])]
    assert all(gain in facts["4.2, Cityscapes"] for gain in gains[:3])
    assert all(str(ours) in facts["4.4 text, table 3 head"] for ours in one["ours"][1::2])
    shares = [f"{10582 * part:,.0f}" for part in (0.1, 0.2, 0.5)] + [f"{count / 29.75:.1f} %" for count in (343, 1527)]
    assert all(share in facts["table 1, counts"] for share in shares)
    losses = {row[0]: float(row[2]) for row in report.PAPER[2][0].rows}
    assert f"g {losses['g']}, l {losses['l']}, p {losses['p']}, g+l {losses['g+l']}" in facts["tables 2 and 3, VOC"]
    steps = np.diff([float(row[1]) for row in report.PAPER[2][0].rows[1:]]).round(1)
    assert (steps.min(), steps.max()) == (0.2, 0.5) and "0.2 to 0.5" in facts["4"]
    report.write_page(folder, [], folder / "page.html")
    for where in facts:
        assert f"| {where} |" in (folder / "paper.md").read_text() and f"<b>{where}.</b>" in (folder / "page.html").read_text()


def test_pictures_are_drawn(folder):
    """Three pictures, none blank, at least 1000 px wide, with the colors of their cells or shares."""
    for number, colors in ((1, ("none", "mscl")), (2, ("1/2",)), (3, ("1/5", "all"))):
        pixels = np.asarray(Image.open(folder / f"table{number}.png").convert("RGB")).astype(int)
        assert pixels.shape[1] >= 1000 and pixels.std() > 5
        for color in colors:
            assert (np.abs(pixels - list(bytes.fromhex(figures.COLORS[color][1:]))).max(-1) <= 2).sum() > 50, (number, color)


def test_points_are_means_with_deviations_hollow_for_one_seed():
    """Points and bars are at the figures of the table."""
    axis = Figure().add_subplot()
    figures._curves(axis, data.Block(1, runs({"none": [20, 21, 22]}, "1/10") + runs({"none": [30]}, "all")))
    (curve, _, (bars,)), hollow = axis.containers[0], axis.lines[-1]
    assert curve.get_xdata() == pytest.approx([0.1, 1]) and curve.get_ydata() == pytest.approx([21, 30])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [pytest.approx([20, 22]), pytest.approx([30, 30])]
    assert hollow.get_ydata() == pytest.approx([30]) and hollow.get_markerfacecolor() == "white"
    axis = Figure().add_subplot()
    figures._dots(axis, data.Block(2, runs({"g": [30, 32]}, "1/2")), {"none": "none", "g": "g *"})
    assert axis.containers[0][0].get_xydata().tolist() == [[31, 1]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["none", "g *"]


def test_table_1_of_a_single_share_has_a_line_a_cell(tmp_path, monkeypatch):
    """With one share there is no curve but a line for each cell, with its mean."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    figures.draw(1, runs({"none": [20, 22], "imagenet_long": [30, 34]}, "1/10"), tmp_path / "table1.png")
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["none", "imagenet long"] and "1/10 (37)" in axis.get_xlabel()
    assert [container[0].get_xydata().tolist() for container in axis.containers] == [[[21, 0]], [[32, 1]]]


class Reader(HTMLParser):
    """The elements and the text of a page; fails on a tag that is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.shown = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown.append(data.strip())


def test_the_page_is_whole(folder):
    """It has every cell of every table, and pictures with descriptions; it loads no other file; table headers have a scope."""
    Image.new("RGB", (40, 30), "red").save(folder / "strip_of_camvid.png")
    report.write_page(folder, [folder / "strip_of_camvid.png"], folder / "new" / "page.html")
    text = (folder / "new" / "page.html").read_text()
    page = Reader(text)
    shown, rows = set(page.shown), data.read_tables(folder)
    main, other = data.blocks(rows).items()
    tables = [table for number in rows for table in report.measured(number, rows)]
    tables += [*tables_claims.claims(main[1]).tables, tables_claims.agreement({main[0]: tables_claims.claims(main[1])})]
    tables += [table for number in rows for table in report.PAPER[number]]
    assert len(tables) > 12 and all({table.title, *table.head, *(cell for row in table.rows for cell in row)} <= shown for table in tables)
    assert text.startswith("<!DOCTYPE html>") and "http" not in re.sub(r"base64,[^\"]*", "", text) and "url(" not in text
    links = [attributes[key] for _, attributes in page.elements for key in ("src", "href") if key in attributes]
    names = {f"#{attributes['id']}" for _, attributes in page.elements if "id" in attributes}
    assert all(link.startswith("data:image/png;base64,") or link in names for link in links)
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 4 and all(len(image["alt"]) > 20 for image in images) and "strip of camvid" in images[-1]["alt"]
    assert base64.b64decode(images[-1]["src"].split(",")[1]) == (folder / "strip_of_camvid.png").read_bytes()
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.elements if tag == "th")
    assert sum(tag == "table" for tag, _ in page.elements) == len(tables)
    assert html.escape("a_new<method>") in text and "<method>" not in text
    assert f"the paper's tables were run: {other[0]}. hypotheses.md" in text


def test_claims_need_all_rows_of_the_paper(tmp_path):
    """Claims of a second setting are on the page only if no row of the paper is missing in it."""
    one = runs({"none": around(30), "mscl": around(40)}, "1/10")
    whole = {1: one, **ordered()}
    for missing in (True, False):
        methods = {cell: [36] for cell in list(METHODS)[missing:]}
        changed = {1: one, 2: whole[2], 3: runs(methods, "all")}
        both = {number: [*whole[number], *(row | {"reading": "printed"} for row in changed[number])] for number in whole}
        write(tmp_path, both)
        report.write_page(tmp_path, [], tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        assert ("were run: CamVid, small scale, as printed, from ImageNet weights. " in text) == missing
        assert text.count("<h3>CamVid") == 2 - missing
    claims = {setting: tables_claims.claims(tables) for setting, tables in data.blocks(both).items()}
    table = tables_claims.agreement(claims)
    assert table.head == ("claim", *map(str, claims)) and table.rows[2] == ("H3: g+l+p not behind g, l, p", "supported", "supported")
    scores = "15 of 15 comparisons hold, 15 strictly", "11 of 15 comparisons hold, 11 strictly, 4 not run"
    assert table.rows[-1] == (tables_claims.ORDERING, *scores)


def test_a_part_of_a_data_set_is_named():
    """The small scale has the animals of PASCAL VOC only, the full scale all of it."""
    small, full, other = (
        str(data.Setting(*words, "printed", "random")) for words in (("small", "voc2012"), ("full", "voc2012"), ("small", "x"))
    )
    assert small == "PASCAL VOC 2012, animal-centered part, small scale, as printed, from random weights"
    assert full.startswith("PASCAL VOC 2012, full scale, ") and other.startswith("x, small scale, ")


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_page_fits_a_phone_and_dark_mode(folder):
    """At 390 px the tables scroll and the page does not; in dark mode the background is dark."""
    browsers = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")
    report.write_page(folder, [], folder / "page.html")
    with browsers.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        page.goto((folder / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("[...document.querySelectorAll('.scroll')].some(table => table.scrollWidth > table.clientWidth)")
        colors = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
        paper, ink = (statistics.mean(map(int, re.findall(r"\d+", color))) for color in colors)
        assert paper < 60 and ink > 200
        browser.close()


def test_other_subsets_have_their_own_table():
    """Runs with other masks are in no mean and no claim; their deviation over subsets, with seed 0, has its own table."""
    usual = runs({"none": around(20), "mscl": around(30)}, "1/10")
    other = [row for n in "12" for row in runs({"none": [20 + int(n)], "mscl": [33.0]}, "1/10", subset_seed=n)]
    assert report.measured(1, {1: usual + other}) == report.measured(1, {1: usual})
    (table,) = report.other_subsets(usual + other)
    assert table.rows == [("none", "1/10", "3", "20.8 ± 1.3"), ("mscl", "1/10", "3", "31.8 ± 2.0")]  # 19.5, 21, 22 and 29.5, 33, 33
    assert report.other_subsets(usual) == []


def test_classes_have_means_over_seeds():
    """Only runs with a tenth of the masks count; the mean of a class is over the runs that have it."""
    rows = runs({"none": [20.0, 22.0], "mscl": [30.0, 30.0]}, "1/10") + runs({"none": [50.0]}, "all")
    rows[0]["per_class_iou"] = "sky=0.2000"
    (table,) = report.per_class(rows)
    assert table.head == ("class", "none", "mscl")
    assert table.rows == [("sky", "21.0 ± 1.4", "30.0 ± 0.0"), ("road", "11.0", "15.0 ± 0.0")]


def test_the_method_is_also_compared_with_its_starting_weights():
    """Claims beside H1 are answered where the controls were run: here above random weights, and not above ImageNet weights."""
    rows = [row for share in ("1/10", "1/5") for row in runs({"none": around(10), "imagenet": [30, 30, 30], "mscl": around(30, 2)}, share)]
    assert answer("H1", {1: rows}) == "supported" and answer("beside H1: mscl above imagenet", {1: rows}) == "not supported"
    assert not [claim for claim in claims_of({1: rows}).answers if "long" in claim]

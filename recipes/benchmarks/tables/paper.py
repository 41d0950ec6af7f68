"""The paper's three tables as printed, and facts about them that a careful user should know."""

from .rows import Table


def printed(title: str, head: str, *rows: str) -> Table:
    """A table of the paper from one string for each row."""
    return Table(f"The paper, {title}, full scale", tuple(head.split()), [tuple(row.split()) for row in rows])


PAPER = {  # one number a cell, without deviations
    1: [
        printed("PASCAL VOC 2012", "images 1059 2118 5295 10582", "random 23.6 30.1 36.4 40.7", "ours 57.8 61.9 64.2 66.7"),
        printed("Cityscapes", "images 343 596 1527 2975", "random 48.2 54.6 60.8 63.5", "ours 64.3 68.4 72.8 73.5"),
    ],
    2: [
        printed("Cityscapes (1527 images) and PASCAL VOC 2012 (5295)", "losses Cityscapes VOC", "none 60.8 36.4", "g 71.1 57.5",
                "l 71.3 58.9", "p 71.6 59.6", "g+l 71.9 60.7", "g+p 72.1 61.5", "l+p 72.3 62.9", "g+l+p 72.8 64.2"),
    ],
    3: [
        printed("PASCAL VOC 2012", "images 2118 10582", "random 30.1 40.7", "SimCLR 60.8 64.3", "AF 60.4 63.2", "RMI 61.1 64.5",
                "ours 61.9 66.7"),
    ],
}  # fmt: skip


def _facts(*rows: tuple[str, str, str]) -> Table:
    note = (
        "Sections and tables are those of “Pre-Training Study on Image Segmentation based on Multi-Scale Contrast Learning”, Computer "
        "Fraud and Security, vol. 2025, issue 1. docs/method.md lists our choices where the text has gaps."
    )
    return Table("What a careful user should know about the paper", ("where", "what is printed", "what follows"), list(rows), note)


FACTS = _facts(
    (
        "abstract; 3.2, L_p",
        "a “self-supervised” method whose pixel loss takes pixels “with the same labels” as positives",
        "of the seven sums of table 2 only g, l and g+l read no masks; a row with p beside SimCLR is a supervised pre-training "
        "beside an unsupervised one. Our tables have a column for it",
    ),
    (
        "4.2, table 1",
        "label counts of “training samples”, the same word for both stages",
        "the text does not state whether pre-training read masks that fine-tuning does not. In our runs it never does",
    ),
    (
        "4.4",
        "“All of these methods used ImageNet for pre-training”",
        "cannot hold for table 3's row “random initialization”; the text does not state whether “ours” started from ImageNet in "
        "tables 1 and 2. Our rows name their start, and imagenet is a separate row",
    ),
    (
        "4.4, table 3",
        "AF and RMI beside SimCLR",
        "Adaptive Affinity Fields and Region Mutual Information are losses of the supervised stage (the text calls AF region-"
        "based); a row of a comparison is a pre-training and a loss",
    ),
    (
        "4.4 text, table 3 head",
        "the text says 2118 and 5295 images, the head 2118 and 10582",
        "“ours”, 61.9 and 66.7, are table 1's values for 2118 and 10582: the head agrees with table 1",
    ),
    (
        "tables 2 and 3, VOC",
        "SimCLR with 2118 masks 60.8; with 5295 masks g 57.5, l 58.9, p 59.6, g+l 60.7",
        "SimCLR is ahead of all four with two fifths of their masks",
    ),
    (
        "4.2, Cityscapes",
        "“less than 600 … about 12 %”",
        "table 1 gives +16.1 at 343 and +13.8 at 596; +12.0 is that of 1527. The other gains of the text agree with the table",
    ),
    (
        "table 1, counts",
        "VOC 1059, 2118, 5295, 10582; Cityscapes 343, 596, 1527, 2975",
        "a tenth, a fifth and half of 10,582 are 1,058, 2,116 and 5,291; 343 and 1527 are 11.5 % and 51.3 % of 2,975. The text "
        "does not state how the subsets were drawn, or whether each contains the smaller ones",
    ),
    (
        "4.1",
        "VOC: 10582 training, 1449 validation, “456 test images”",
        "10,582 is the training set with SBD's masks added, which the text does not name; VOC 2012 has 1,464 training and 1,456 "
        "test images",
    ),
    (
        "4",
        "one number a cell",
        "no repetition, no deviation; table 2's rows with a loss follow each other by 0.2 to 0.5 points on Cityscapes",
    ),
    (
        "3, 4",
        "no optimizer, learning rate, schedule, batch size, crop, temperature, grid of blocks, embedding size, decoder, color range or "
        "split of evaluation",
        "the tables cannot be repeated from the text; every such choice here is ours, and documented",
    ),
    (
        "3.1, L_g, L_l",
        "the positive in the denominator has no temperature",
        "--denominator literal shows what that does: the loss can fall below zero",
    ),
    (
        "3.2, 3",
        "E with the index of Î twice; L_q, L_a for L_g; K for the backbone's width and the pixel embedding's",
        "misprints with one sensible reading",
    ),
)

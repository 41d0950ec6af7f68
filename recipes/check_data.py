"""Look at a data set before training: images, masks, classes, all problems and suspicious things, and a picture of samples.

mscl-data check --dataset folder --data-dir DIR
mscl-data check --dataset coco --data-dir DIR --val-fraction 0.2
"""

import sys
from dataclasses import replace
from pathlib import Path

from mscl_hf import data, records, sharing
from mscl_hf.cli import command, parse
from mscl_hf.config import CheckConfig, CheckRun, DataConfig, TrainingConfig
from mscl_hf.config.network import DEFAULT_SIZE


@command
def main() -> None:
    words = sys.argv[1:]
    config = parse(CheckConfig, __doc__.splitlines()[0], words[1:] if words[:1] == ["check"] else words, "check")
    run, options = config.run, config.data
    problems = []
    if options.val_fraction is not None:
        try:
            options = with_val_split(options, Path(run.output_dir))
        except ValueError as error:  # the other problems are reported as well
            problems, options = [str(error)], replace(options, val_fraction=None)
    run, notes = with_sizes(run, options)
    report = data.examine(options, run.image_size, run.base_size, run.output_stride)
    for problem in problems:
        report.add_problem(problem)
    for line in [*notes, *report.notes, *(line for split in report.splits for line in split.lines())]:
        print(line)
    for title, sentences in (("problems, for which training is rejected", report.problems), ("suspicious", report.suspicions)):
        print(f"{title}: {len(sentences) or 'none'}")
        for number, sentence in enumerate(sentences, 1):
            print(f"  {number}. {sentence}")
    if report.splits and report.splits[0].sizes:
        print(f"picture of samples: {data.draw_samples(report.splits[0], Path(run.output_dir) / 'samples.png')}")
    if report.problems:
        sys.exit(1)
    print(f"next: {sharing.next_command('mscl-pretrain', None, replace(options, image_range=None))}")


def with_val_split(options: DataConfig, out: Path) -> DataConfig:
    """The options with images to hold out, drawn anew: an earlier check may have been of other data."""
    if (out / records.RECORD).exists():
        raise ValueError(f"--output-dir is {out}, which holds a run; expected a folder for the check. Give another one.")
    (out / records.VAL_SPLIT).unlink(missing_ok=True)
    return data.with_val_split(options, out, None)


def with_sizes(run: CheckRun, options: DataConfig) -> tuple[CheckRun, list[str]]:
    """The options with the sizes that pre-training would choose, and what it would log."""
    notes = []
    run = data.with_known_sizes(run, options, False, run.output_dir)
    limit = data.machine_limit(None, TrainingConfig.batch_size)
    try:
        return data.with_derived_sizes(run, options, limit, notes.append), notes
    except ValueError:  # data that cannot be opened, which the report names
        return replace(run, image_size=DEFAULT_SIZE), notes


if __name__ == "__main__":
    main()

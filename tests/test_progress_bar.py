"""The bar of several stages: a line per stage, and a bar that never moves back."""

import re
import sys

import pytest

from mscl_hf.progress_bar import chain, progress_bar


def test_a_finished_stage_is_one_line_in_a_file(capfd):
    """The bars of the stages print nothing where stderr is a file; a stage that fails leaves no line, and the chain ends."""
    with pytest.raises(RuntimeError), chain({"first": 3, "second": 1, "third": 1}) as stages:
        with stages.stage("first"):
            assert list(progress_bar(range(3), unit="image")) == [0, 1, 2]
        with stages.stage("second"):
            bar = progress_bar(total=2, initial=1)
            bar.update()
            bar.set_postfix({"loss": 1})
            bar.close()
        with stages.stage("third"):
            raise RuntimeError
    assert re.fullmatch(r"first: \d+ s\nsecond: \d+ s\n", capfd.readouterr().err)
    assert list(progress_bar(range(2), disable=True)) == [0, 1] and not hasattr(progress_bar(range(2), disable=True), "moves")


def test_the_bar_moves_by_the_shares_of_the_stages(monkeypatch):
    """Half of the first stage, a second loop in it, a loop with a delay, the next stage: positions on the one bar."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    seen = []
    with chain({"first": 3, "second": 1}) as stages:
        with stages.stage("first"):
            bar = progress_bar(total=2)
            bar.update()
            seen.append(stages.bar.n)
            list(progress_bar(range(100), delay=3))
            progress_bar(total=10).update()
            seen.append(stages.bar.n)
        seen.append(stages.bar.n)
        with stages.stage("second"):
            progress_bar(range(4)).update(2)
            seen.append(stages.bar.n)
    assert seen == pytest.approx([1.5, 1.5, 3, 3.5])

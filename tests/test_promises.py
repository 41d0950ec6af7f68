"""The documents promise nothing without a test, and name no test that is not there."""

import re

import pytest
from conftest import ROOT

TESTS = {
    name: path for path in sorted((ROOT / "tests").rglob("*.py")) for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/reliability.md"])
def test_every_promise_names_tests_that_exist(document):
    """Each row of their tables has at least one, and each is defined somewhere below tests/."""
    text = (ROOT / document).read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\|[\s|:-]+\|$", line)]
    headers = [line for line in rows if "promise" in line and "test_" not in line]
    assert headers and len(rows) > 8
    for row in rows:
        named = re.findall(r"`(test_\w+)(?:\.py)?`", row)
        assert named or row in headers, row
        for name in named:
            assert name in TESTS or any((ROOT / "tests").rglob(f"{name}.py")), f"{document} names {name}, which is not there"


def test_the_25_trials_are_all_there():
    """Numbered from 1 to 25."""
    numbers = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert list(map(int, numbers)) == list(range(1, 26))

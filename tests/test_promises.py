"""Each promise in SECURITY.md and docs/reliability.md names a test that exists."""

import re

import pytest
from conftest import ROOT

TESTS = {name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
TEST_FILES = {path.stem for path in (ROOT / "tests").rglob("*.py")}
WITHOUT_PROMISES = ("What is not promised", "How it works", "Limits", "Longer trials")


def promises(document):
    """The table rows and list items of a document, without the headers of tables and the sections WITHOUT_PROMISES."""
    found = []
    for section in re.split(r"^## ", (ROOT / document).read_text(), flags=re.MULTILINE)[1:]:
        if section.startswith(WITHOUT_PROMISES):
            continue
        found += re.findall(r"^(?:\d+\.|-) .*(?:\n  .*)*", section, re.MULTILINE)
        for table in re.findall(r"^\|.*\n\|[\s|:-]+\|\n((?:\|.*\n?)*)", section, re.MULTILINE):
            found += table.splitlines()
    return found


@pytest.mark.parametrize("document, least", [("SECURITY.md", 20), ("docs/reliability.md", 32)])
def test_every_promise_names_tests_that_exist(document, least):
    """Each row or item has at least one test, and each test is defined below tests/."""
    assert len(promises(document)) >= least
    for promise in promises(document):
        names = re.findall(r"`(test_\w+)(?:\.py)?`", promise)
        assert names, promise
        assert set(names) <= TESTS | TEST_FILES, f"{document} names tests that do not exist: {set(names) - TESTS - TEST_FILES}"


def test_reliability_has_25_numbered_faults():
    """Numbered from 1 to 25, without gaps."""
    numbers = re.findall(r"^(\d+)\. ", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert list(map(int, numbers)) == list(range(1, 26))

"""Drawn cases: how many, how they are counted, and what the package may answer to wrong input.

MSCL_HF_FUZZ=1000 draws so many a property, other ones each time; by default they are few and always the same.
"""

import contextlib
import functools
import inspect
import os
import traceback
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / part) + os.sep for part in ("mscl_hf", "recipes"))
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
MANY = int(os.environ.get("MSCL_HF_FUZZ", "0"))

settings.register_profile("default", max_examples=30, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=max(1, MANY), print_blob=True, **COMMON)
settings.load_profile("thorough" if MANY else "default")


def fuzzed(cost: int = 1, **drawn):
    """A property of what is drawn; `cost` times as dear as others, it gets as many times fewer cases. They are counted in its `cases`."""

    def decorate(test):
        @functools.wraps(test)
        def counted(*args, **given_to_it):
            found.cases += 1
            test(*args, **given_to_it)

        found = settings(max_examples=max(1, settings.default.max_examples // cost))(given(**drawn)(counted))
        found.cases = 0
        return found

    return decorate


@contextlib.contextmanager
def stated(also: str = ""):
    """Lets pass what the package says of wrong input: a ValueError or OSError that it raises itself, of one sentence. Yields a list
    that holds it. also: a library whose sentences will do."""
    said: list[str] = []
    try:
        yield said
    except (ValueError, OSError) as error:
        said.append(str(error))
        check_stated(error, also)


def check_stated(error: Exception, also: str = "") -> None:
    """Asserts that a line of the package raises it, not one that it calls, and that it is one sentence."""
    last, said = traceback.extract_tb(error.__traceback__)[-1], str(error)
    ours = last.filename.startswith(OURS) or (also and f"{os.sep}{also}{os.sep}" in last.filename)
    if not (ours and "raise " in last.line and said.strip() and said.splitlines() == [said]):
        raise AssertionError(f"no sentence of the package's, from {last.filename}: {said!r}") from error


# -- hostile values ------------------------------------------------------------------------------------------------------------

ODD_TEXT = ("", " ", "\n", "a\nb", "\x00", "\u2028", "None", "null", "nan", "-inf", "1e999", "0x10", "٣", "½", "é/../", "%s", "{}", "~")
TEXT = st.one_of(st.sampled_from(ODD_TEXT), st.text(max_size=8))
INTEGERS = st.one_of(st.integers(-3, 40), st.sampled_from([255, 256, -(2**31), 2**31, 2**63, 2**64, 10**30]), st.integers())
NUMBERS = st.one_of(INTEGERS, st.floats(), st.sampled_from([0.0, -0.0, 1e-300, 1e300, 1 + 1e-9]))
AMOUNTS = st.one_of(st.floats(0, 3), st.sampled_from([1e-300, 1e-9, 1e-3, 1e-3, 7.0, 7.0, 1e2, 1e3, 1e9, 1e300]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=4)


def fits(kind) -> st.SearchStrategy:
    """Values of the type of an option, extremes among them."""
    words = str(kind)
    several = "list" in words
    for name, one in (("bool", st.booleans()), ("float", NUMBERS.map(float_or_zero)), ("int", INTEGERS), ("", TEXT)):
        if name in words:
            return st.lists(one, max_size=3) if several else one
    raise AssertionError(kind)


def float_or_zero(number) -> float:
    try:
        return float(number)
    except OverflowError:
        return 0.0


def parameters(function) -> dict:
    """The names of what a function takes, and their types."""
    kinds = inspect.signature(function).parameters.values()
    return {each.name: each.annotation for each in kinds if each.kind == each.POSITIONAL_OR_KEYWORD and each.name != "self"}

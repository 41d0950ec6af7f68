"""Random label maps, class names, subsets and sampling plans."""

import numpy as np
from fuzz import INTEGERS, SCALARS, TEXT, fuzzed, stated
from hypothesis import example
from hypothesis import strategies as st
from PIL import Image

from mscl_hf.data.class_inference import infer_classes
from mscl_hf.data.files import slices_by_name
from mscl_hf.data.label_map import class_names, make_table
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.subset import choose_subset

IDS = st.one_of(st.integers(0, 255), SCALARS)
MAP_TEXTS = st.one_of(TEXT, st.lists(st.tuples(IDS, IDS), max_size=3).map(lambda pairs: ",".join(f"{a}:{b}" for a, b in pairs)))
NAME_LINES = st.lists(TEXT, max_size=4).map(lambda names: "\n".join(names).encode("utf-8", "replace"))
LABEL_MAPS = st.one_of(st.none(), MAP_TEXTS, st.dictionaries(st.one_of(st.integers(0, 255), SCALARS), IDS, max_size=3))


@example(label_map="65535:255,300:1", reduce=False)
@example(label_map={0: None}, reduce=False)
@example(label_map={0: float("inf")}, reduce=False)
@example(label_map={0: 1.5}, reduce=False)
@fuzzed(label_map=LABEL_MAPS, reduce=st.booleans())
def test_label_maps(label_map, reduce):
    """A table of 256 ids, or of 65536 where one of 16 bits is named, that follows the map and keeps the other ids, or one
    sentence."""
    with stated():
        table = make_table(label_map, reduce)
        if table is None:
            assert not label_map and not reduce
            return
        if reduce:
            assert table.shape == (256,) and table.dtype == np.uint8
        else:
            pairs = [pair.split(":") for pair in label_map.split(",")] if isinstance(label_map, str) else list(label_map.items())
            assert not any(isinstance(id, float) for pair in pairs for id in pair)
            wanted = {int(stored): int(train) for stored, train in pairs}
            assert len(table) == (256 if max(wanted) < 256 else 65_536)
            assert table.tolist() == [wanted.get(stored, stored) for stored in range(len(table))]


@example(classes=[""], count=None)
@example(classes=[[]], count=None)
@example(classes=None, count=10**9)
@example(classes=",".join(f"class {i}" for i in range(60)), count=60)
@fuzzed(classes=st.one_of(st.none(), TEXT, st.lists(TEXT, max_size=4), st.lists(SCALARS, max_size=2)), count=st.one_of(st.none(), INTEGERS))
def test_class_names(classes, count):
    """As many different names as classes, or one sentence."""
    with stated():
        names = class_names(classes, count)
        assert names is None and classes is None or 1 <= len(set(names)) == len(names) <= 255
        assert names is None or all(isinstance(name, str) and name for name in names)
        assert count is None or count == len(names)


@example(content=b"\x80")
@fuzzed(content=st.one_of(st.binary(max_size=30), NAME_LINES))
def test_file_of_class_names(tmp_path_factory, content):
    """Any bytes as the file of names: read, or one sentence that names the file."""
    path = tmp_path_factory.getbasetemp() / "names.txt"
    path.write_bytes(content)
    with stated() as said:
        names = class_names(path, None)
        assert len(set(names)) == len(names) and all(names)
    assert not said or "names" in said[0]


@fuzzed(ids=st.lists(st.lists(st.sampled_from([0, 1, 2, 7, 254, 255, 256, 40000]), min_size=1, max_size=4), max_size=3), table=LABEL_MAPS)
def test_classes_found_in_masks(ids, table):
    """Up to the highest train id that occurs, or one sentence."""
    with stated():
        table = make_table(table)
        names = infer_classes(((str(i), Image.fromarray(np.array([row], np.int32))) for i, row in enumerate(ids)), table)
        stored = {v for row in ids for v in row}
        assert len(names) == 1 + max({v if table is None else int(table[v]) for v in stored} - {255})


@example(total=0, first=1.0, second=0, seed=0, groups=None)
@fuzzed(total=st.integers(0, 40), first=st.one_of(st.floats(), st.floats(0, 1)), second=st.one_of(INTEGERS, st.floats(0, 1)),
        seed=INTEGERS, groups=st.one_of(st.none(), st.lists(TEXT, min_size=1, max_size=3)))  # fmt: skip
def test_subsets_lie_in_each_other(total, first, second, seed, groups):
    """Two parts are all rows, a smaller subset is part of a larger one, and it has the share of every group to about a whole number."""
    of_row = None if groups is None else [groups[i * i % len(groups)] for i in range(total)]
    parts = []
    for size in (first, second):
        with stated():
            share = {"fraction": size} if isinstance(size, float) else {"count": size}
            chosen, rest = choose_subset(total, **share, seed=seed, groups=of_row)
            assert sorted(chosen + rest) == list(range(total)) and chosen == sorted(chosen) and chosen
            parts.append(set(chosen))
            for group in set(of_row or ()):
                rows = {i for i in range(total) if of_row[i] == group}
                assert abs(len(rows & parts[-1]) - len(rows) * len(chosen) / total) < 2
    if len(parts) == 2:
        smaller, larger = sorted(parts, key=len)
        assert smaller <= larger


@example(labelled=1, unlabelled=1, batch=0, share=1, world=1, seed=0, step=0)
@example(labelled=1, unlabelled=0, batch=1, share=1, world=0, seed=0, step=0)
@example(labelled=1, unlabelled=0, batch=1, share=1, world=-1, seed=0, step=0)
@fuzzed(labelled=st.integers(0, 12), unlabelled=st.integers(0, 12), batch=st.integers(-1, 8), share=st.integers(-1, 9),
        world=st.integers(-1, 4), seed=st.integers(0, 2**32 - 1), step=st.one_of(st.integers(0, 50), st.integers(0, 2**40)))  # fmt: skip
def test_orders(labelled, unlabelled, batch, share, world, seed, step):
    """A global batch does not depend on the number of processes, and no image occurs twice in an epoch."""
    with stated():
        order = SamplingPlan(tuple(range(labelled)), tuple(range(unlabelled)), batch, share, seed)
        order.check_world(world)
        tickets = order.batch(step)
        assert len(tickets) == batch and sum(ticket.labelled for ticket in tickets) == share
        parts = [order.share(step, rank, world) for rank in range(world)]
        assert sorted(ticket for part in parts for ticket in part) == tickets
        assert len({(len(part), sum(ticket.labelled for ticket in part)) for part in parts}) == 1
        for count, there, wanted in ((share, labelled, True), (batch - share, unlabelled, False)):
            if 0 < count <= there:
                epoch = there // count
                start = step // epoch * epoch
                seen = [t.index for s in range(start, start + epoch) for t in order.batch(s) if t.labelled == wanted]
                assert len(set(seen)) == len(seen) == epoch * count


@fuzzed(names=st.lists(st.text("ab/0123_²٣", min_size=1, max_size=5), min_size=1, max_size=5))
def test_slices_of_any_names(names):
    """Every image has its own position in its volume, whatever digits its name has."""
    volumes = [name[0] for name in names]
    slices = slices_by_name(volumes, names)
    assert [each.volume for each in slices] == volumes
    assert len(set(slices)) == len(slices) and all(0 < each.position < 1 for each in slices)

"""Streams: shards, shard sequences, and which process reads what."""

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import fsspec
import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from hub_routes import Repo
from minihub import TOKEN, Minihub
from PIL import Image

from mscl_hf.config import DataConfig
from mscl_hf.data import BadSample, dataset, load_data, open_training_data, open_whole_split, shards, stream, training_data
from mscl_hf.data.hub_layout import streamed_shards
from mscl_hf.data.loader import worker_slots
from mscl_hf.data.sampler import permutation
from mscl_hf.data.shards import gathered
from mscl_hf.data.training_data import TrainingStream
from mscl_hf.transforms.views import TrainView

EQUAL, UNEQUAL = (20, 20, 20, 20), (30, 7, 19, 1, 23, 12)  # rows of the shards


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    """Blocks of 8 rows, so that a shard has several; the cache of `datasets` is in the test's folder."""
    monkeypatch.setattr(stream, "SHUFFLED_ROWS", 8)
    monkeypatch.setattr(stream, "LEAST_BLOCK", 8)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def encoded(*color, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (4, 4), color if mode == "RGB" else color[0]).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def write(root, counts, bad=()):
    """A parquet file for each count, its row groups of 3 rows; image and mask of row i over all files hold i, and a bad row no image."""
    root.mkdir()
    starts = np.cumsum([0, *counts])
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    for part, (start, end) in enumerate(itertools.pairwise(starts.tolist())):
        rows = [{"image": encoded(i // 250, i % 250, 0), "mask": encoded(0, mode="L")} for i in range(start, end)]
        for i in set(bad) & set(range(start, end)):
            rows[i - start]["image"] = {"bytes": b"no image", "path": None}
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        pq.write_table(table, root / f"train-{part:05d}-of-{len(counts):05d}.parquet", row_group_size=3)
    return root


def opened(root, batch=8):
    data = load_data("hf", "train", root, streaming=True, num_classes=1)
    return TrainingStream(data, TrainView(4, 4), 3, batch)


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    return write(tmp_path_factory.mktemp("equal") / "data", EQUAL)


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    return write(tmp_path_factory.mktemp("unequal") / "data", UNEQUAL)


def ids(samples):
    return [250 * int(sample.image[0, 0, 0]) + int(sample.image[0, 0, 1]) for sample, _ in samples]


def batches(data, first, last, world=1, workers=0):
    """The global batches, put together from all processes': process r has the slots r, r + world, ..."""
    whole = []
    for parts in zip(*(data.loader(first, last, rank, world, workers) for rank in range(world))):
        size = sum(len(part["name"]) for part in parts)
        batch = {"name": [None] * size, "bad": sorted(message for part in parts for message in part["bad"])}
        for key in ("image", "mask"):
            batch[key] = torch.zeros(size, *parts[0][key].shape[1:], dtype=parts[0][key].dtype)
        for rank, part in enumerate(parts):
            assert torch.equal(part["labelled"], torch.arange(len(part["name"])))
            batch["name"][rank::world] = part["name"]
            for key in ("image", "mask"):
                batch[key][rank::world] = part[key]
        whole.append(batch)
    assert len(whole) == last - first
    return whole


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one["name"] == other["name"] and one["bad"] == other["bad"]
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["mask"], other["mask"])


def names(found):
    return [name for batch in found for name in batch["name"]]


# -- what is read


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 0), (4, 0), (1, 2), (2, 2)])
def test_a_pass_holds_each_row_once(equal, world, workers):
    """Over all processes and workers each row occurs once; the next pass has the same rows in another order."""
    data = opened(equal)
    found = names(batches(data, 0, 20, world, workers))
    first, second = found[:80], found[80:]
    assert len(set(first)) == 80 and set(first) == set(second) and first != second
    assert first != sorted(first)


@pytest.mark.parametrize("batch, sequences", [(4, 4), (8, 4), (6, 6), (9, 3), (7, 1)])
def test_sequences_read_whole_shards_in_turn(unequal, batch, sequences):
    """Sequence l reads the shards l, l + L, ... of one permutation after another, each with all its rows, however unequal they are."""
    data = opened(unequal, batch).stream
    assert data.sequences(batch) == sequences
    starts = np.cumsum([0, *UNEQUAL])
    steps = list(itertools.islice(data.batches(5, batch, range(batch)), 200 // (batch // sequences)))
    shuffled = 0
    for sequence in range(sequences):
        rows = [row for samples in steps for row in ids(samples[sequence::sequences])]
        for turn in itertools.count(sequence, sequences):
            shard = int(permutation(5, 2, turn // len(UNEQUAL), len(UNEQUAL))[turn % len(UNEQUAL)])
            part, rows = rows[: UNEQUAL[shard]], rows[UNEQUAL[shard] :]
            if len(part) < UNEQUAL[shard]:
                break
            assert sorted(part) == list(range(starts[shard], starts[shard + 1]))
            shuffled += part != sorted(part)
    assert shuffled


def test_blocks_mix_distant_row_groups(equal):
    """Row groups come in another order than stored: eight rows that come one after another are from distant thirds of the file."""
    rows = ids(s for samples in itertools.islice(opened(equal, 1).stream.batches(0, 1, [0]), 20) for s in samples)
    assert len({row // 3 for row in rows[:8]}) >= 2 and max(rows[:9]) - min(rows[:9]) > 9


@pytest.mark.parametrize("counts, size, wanted", [
    ((3, 3, 3, 3), 6, [[0, 1], [2, 3]]), ((3, 3, 3, 1), 6, [[0, 1, 2, 3]]), ((9, 1, 9), 4, [[0], [1, 2]]), ((2,), 9, [[0]]), ((), 9, []),
])  # fmt: skip
def test_small_row_groups_are_put_together(counts, size, wanted):
    """Blocks hold at least `size` rows, where the shard has so many; a smaller rest joins the block before it."""
    assert gathered(range(len(counts)), counts, size) == wanted


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("batch, world, workers", [(8, 1, 2), (8, 2, 0), (8, 2, 2), (8, 4, 0), (8, 4, 2), (7, 1, 3), (7, 7, 0)])
def test_every_number_of_processes_and_workers_sees_the_same_batches(unequal, batch, world, workers):
    """Images with their crops, masks, names: the same, with a sequence for each reader, or one that all of them read (a batch of 7)."""
    data = opened(unequal, batch)
    assert_same(batches(data, 2, 9, world, workers), batches(data, 2, 9))


def test_other_stored_forms_have_the_same_promises(tmp_path):
    """Rows that only `datasets` can stream, in parts or in one: each once in a pass, the same batches, the same after a stop."""
    rows = [{"image": encoded(0, i, 0), "mask": encoded(0, mode="L")} for i in range(24)]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    for form in ("saved", "lines"):
        stored = datasets.Dataset.from_list(rows, features=features)
        stored.save_to_disk(tmp_path / form) if form == "saved" else as_image_folder(rows, tmp_path / form)
        data = opened(tmp_path / form, 4)
        wanted = batches(data, 0, 12)
        assert len(set(names(wanted[:6]))) == 24 and set(names(wanted[6:])) == set(names(wanted[:6]))
        assert_same(batches(data, 8, 12, 2, 2), wanted[8:])
        assert_same(batches(data, 8, 12, 4), wanted[8:])


def as_image_folder(rows, root):
    (root / "train").mkdir(parents=True)
    lines = []
    for i, row in enumerate(rows):
        (root / "train" / f"{i}.png").write_bytes(row["image"]["bytes"])
        (root / "train" / f"{i}_mask.png").write_bytes(row["mask"]["bytes"])
        lines.append(f'{{"file_name": "{i}.png", "mask_file_name": "{i}_mask.png"}}\n')
    (root / "train" / "metadata.jsonl").write_text("".join(lines))


# -- which process reads


@pytest.fixture
def opens(tmp_path, monkeypatch):
    """opens() -> {process id: files that it has opened}, also those of workers, which are forked."""
    record, real = tmp_path / "opens.txt", shards._opened

    def noted(address):
        with record.open("a") as file:
            file.write(f"{os.getpid()} {Path(address).name}\n")
        return real(address)

    monkeypatch.setattr(shards, "_opened", noted)
    shards._stored_rows.cache_clear()

    def found():
        by_process = {}
        for line in record.read_text().splitlines():
            process, name = line.split()
            by_process.setdefault(int(process), []).append(name)
        record.unlink()
        return by_process

    return found


def test_each_worker_opens_only_its_own_files(equal, opens):
    """Four files, two processes of two workers: in a pass, each worker opens one file, once, and all of them all files."""
    data = opened(equal)
    seen = []
    for rank in range(2):
        list(data.loader(0, 10, rank, 2, workers=2))
        by_process = opens()
        assert len(by_process) == 2 and os.getpid() not in by_process
        seen += [name for names in by_process.values() for name in names]
    assert len(seen) == 4 and len(set(seen)) == 4
    list(data.loader(0, 10, 1, 2, workers=0))
    assert len(opens()[os.getpid()]) == 2


def test_workers_share_no_lane_where_there_are_enough():
    """Every slot is filled by one worker; none is idle; and where sequences divide over the processes, none reads a sequence of another."""
    for sequences, world, workers in itertools.product((1, 3, 4, 8, 16), (1, 2, 4, 8), (0, 1, 2, 3, 5)):
        batch = sequences * 8
        parts = [worker_slots(batch, sequences, rank, world, workers) for rank in range(world)]
        assert sorted(slot for process in parts for part in process for slot in part) == list(range(batch))
        assert all(process and all(process) for process in parts)
        if sequences % world == 0 and workers <= sequences // world:
            owners = [{slot % sequences for slot in part} for process in parts for part in process]
            assert sum(map(len, owners)) == sequences == len(set.union(*owners))


def test_shards_that_cannot_be_split_are_told_once(equal, capsys):
    """One sentence, from the first process only, and only if several have to read the same shard."""
    training_data._log_once.cache_clear()
    data = opened(equal)
    for world, workers in ((4, 0), (2, 2)):
        next(iter(data.loader(0, 1, 0, world, workers)))
    assert not capsys.readouterr().out
    for rank in (0, 1, 0):
        next(iter(data.loader(0, 1, rank, 8)))
    assert capsys.readouterr().out.count("4 shard(s) of data/train cannot be split over 8 process(es)") == 1


# -- resuming


@pytest.mark.parametrize("counts", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("bad", [(), (1, 2, 25, 60)])
def test_it_goes_on_at_any_step(tmp_path, counts, bad):
    """From any step of three passes on, and after any number of bad rows, the batches are those of the undisturbed run."""
    data = opened(write(tmp_path / "data", counts, bad))
    wanted = batches(data, 0, 32)
    for first in range(1, 32, 3):
        assert_same(batches(data, first, first + 1), wanted[first : first + 1])


@pytest.mark.parametrize("world, workers", [(1, 0), (1, 2), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_it_goes_on_with_any_number_of_processes_and_workers(tmp_path, world, workers):
    """Stopped after 13 steps, in the second pass, with bad rows before and behind; one process alone had begun."""
    data = opened(write(tmp_path / "data", UNEQUAL, bad=(0, 31, 32, 60)))
    assert_same(batches(data, 13, 17, world, workers), batches(data, 0, 17)[13:])


def test_what_was_used_is_neither_decoded_nor_read(equal, opens, monkeypatch):
    """A run that goes on at nine tenths of a pass opens a file for its number of rows and once more to read on, reads row groups from its
    place on only, and decodes what it uses."""
    groups, decoded = [], []
    read, decode = pq.ParquetFile.read_row_groups, dataset.decode
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda self, some, **o: groups.extend(some) or read(self, some, **o))
    monkeypatch.setattr(dataset, "decode", lambda *given: decoded.append(1) or decode(*given))
    data = opened(equal)
    batches(data, 9, 10)
    assert len(opens()[os.getpid()]) == 8 and len(groups) <= 4 * 4 and len(decoded) == 2 * 8
    groups.clear()
    batches(data, 19, 20)  # the pass before is known by its numbers of rows
    assert len(opens()[os.getpid()]) == 4 and len(groups) <= 4 * 4


# -- bad rows


def test_a_bad_row_moves_no_other(tmp_path):
    """Bad rows change only their own slots: these have the next row of the block, with a message."""
    good, bad = (opened(write(tmp_path / name, EQUAL, rows)) for name, rows in (("good", ()), ("bad", (42, 7))))
    one, other = batches(good, 0, 10), batches(bad, 0, 10)
    differ = [(a, b) for a, b in zip(names(one), names(other)) if a != b]
    assert {a.split("_")[1] for a, _ in differ} == {"00000002", "00000007"} and len(differ) == 2
    messages = [message for batch in other for message in batch["bad"]]
    assert len(messages) == 2 and sum("the image of row 2 of" in m and "00002-of-00004.parquet" in m for m in messages) == 1
    for a, b in differ:
        assert a.split("_")[0] == b.split("_")[0]  # of the same shard


def test_bad_rows_end_the_run_beyond_the_limit(tmp_path):
    """Each is counted once over all passes: two are within the limit, or beyond it."""
    data = opened(write(tmp_path / "data", (12, 12), bad=(3, 20)), harness.BATCH)
    data = replace(data, view=TrainView(harness.SIZE, harness.SIZE))
    accelerator = harness.fresh_accelerator()
    for allowed in (2, 1):
        (tmp_path / str(allowed)).mkdir()
        rejected = contextlib.nullcontext() if allowed == 2 else pytest.raises(ValueError, match="--max-bad-images is 1 and 2 image")
        with rejected:
            harness.fit(
                harness.finetuning(), data, harness.options(max_steps=14), tmp_path / str(allowed), accelerator, max_bad_images=allowed
            )


def test_a_block_without_a_usable_row_ends_it(tmp_path):
    """It names the shard, and the first of the bad rows."""
    with pytest.raises(BadSample, match=r"none of 5 rows of a block of .*00000-of-00001.parquet.*the image of row"):
        batches(opened(write(tmp_path / "data", (5,), bad=range(5)), 1), 0, 1)


def test_a_label_outside_the_classes_is_a_bad_row(tmp_path):
    """With its value, as for data that are not streamed."""
    root = write(tmp_path / "data", (4,))
    file = next(root.iterdir())
    rows = pq.read_table(file).to_pylist()
    rows[2]["mask"] = encoded(7, mode="L")
    pq.write_table(pq.read_table(file).from_pylist(rows, schema=pq.read_schema(file)), file)
    (batch,) = batches(opened(root, 4), 0, 1)
    assert len(batch["bad"]) == 1 and "[7]" in batch["bad"][0] and "the mask of row 2 of" in batch["bad"][0]


def test_shards_without_rows_are_passed_over_or_rejected(tmp_path):
    """An empty file is skipped; only empty files are an error, not an endless loop."""
    assert len(set(names(batches(opened(write(tmp_path / "some", (0, 6, 0, 6)), 2), 0, 24)))) == 12
    with pytest.raises(ValueError, match="none of the 2 shards"):
        batches(opened(write(tmp_path / "none", (0, 0)), 2), 0, 1)


def test_streams_without_rows_are_named(tmp_path):
    """Fine-tuning on shards without rows, and evaluation on them, end in one sentence that names the data."""
    root = write(tmp_path / "a", (0, 0))
    options = DataConfig("hf", str(root), num_classes=2, streaming=True)
    data = open_training_data(options, TrainView(4, 4), 2, 0)
    with pytest.raises(ValueError, match="none of the 2 shards of a/train has a row. Give others"):
        next(iter(data.loader(0, 1)))
    with pytest.raises(ValueError, match="a/train has no rows; expected at least one image. Give another"):
        open_whole_split(options, "train")


def test_a_broken_shard_is_named(tmp_path):
    """A file that is no parquet file, and one without a column, end the run with the name of the file."""
    root = write(tmp_path / "data", (6, 6))
    data, second = opened(root, 2), sorted(root.iterdir())[1]
    table = pq.read_table(second).drop_columns("mask")
    pq.write_table(table, second)
    with pytest.raises(ValueError, match=f"{second.name} cannot be read"):
        batches(data, 0, 6)
    second.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"{second.name} cannot be read"):
        batches(data, 0, 6)


# -- remote files


def test_any_address_of_fsspec_is_read_like_its_files(equal, unequal):
    """Like a bucket: the files of a split, at any depth below the address; the same batches with workers."""
    files = fsspec.filesystem("memory")
    for file in sorted(equal.iterdir()):
        files.pipe_file(f"/bucket/pictures/{int(file.name[10]) % 2}/{file.name}", file.read_bytes())
    files.pipe_file("/bucket/pictures/val-00000-of-00001.parquet", next(unequal.iterdir()).read_bytes())
    data = opened("memory://bucket/pictures")
    found = batches(data, 0, 10, 1, 2)
    assert len(data.stream.shards) == 4 and len(set(names(found))) == 80
    assert_same(batches(data, 7, 10, 2), found[7:])
    with pytest.raises(ValueError, match="--data-dir is memory://bucket/nothing"):
        opened("memory://bucket/nothing")


READER = """
import json, sys
import datasets
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
from mscl_hf.data import load_data
from mscl_hf.data.training_data import TrainingStream
from mscl_hf.transforms.views import TrainView
from mscl_hf.data import stream
stream.SHUFFLED_ROWS = stream.LEAST_BLOCK = 8
data = load_data("hf", "train", sys.argv[1], streaming=True, num_classes=1)
data = TrainingStream(data, TrainView(4, 4), 3, 8)
for asked in sys.argv[2:]:
    print(json.dumps([batch["name"] for batch in data.loader(*json.loads(asked))]))
"""


def test_a_repository_of_the_hub_is_read_like_its_files(tmp_path, equal):
    """Over HTTP, by ranges: the second of two processes has the rows of the local run, in workers too, and asks for its own files."""
    with Minihub(tmp_path / "hub") as hub:
        hub.repos["datasets/org/pictures"] = make_repository(hub, equal)

        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
                        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
        done = subprocess.run(  # a process of its own, since HF_ENDPOINT is read at import
            [sys.executable, "-c", READER, "org/pictures", "[0, 10, 1, 2]", "[6, 10, 1, 2, 2]"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    wanted = [batch["name"][1::2] for batch in batches(opened(equal), 0, 10)]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [wanted, wanted[6:]]
    asked = [path for method, path, status in hub.log if method == "GET" and status == 206]
    assert len({path for path in asked if not path.endswith("00000-of-00004.parquet")}) <= 2  # the first one tells the columns


def make_repository(hub, root):
    repo = Repo("dataset", "org/pictures", False)
    repo.commit("main", {f"data/{file.name}": hub.store(file.read_bytes(), True) for file in sorted(root.iterdir())}, "shards")
    return repo


def test_sequences_that_find_their_place_side_by_side_lose_no_row():
    """Parts of a stream share state inside `datasets`; read by two threads at once, a part sometimes seemed empty."""
    scenes = harness.scenes()
    rows = [{column: scenes.rows[i][column] for column in ("image", "mask")} for i in range(len(scenes))]
    features = datasets.Features({column: datasets.Image(decode=False) for column in ("image", "mask")})
    stored = datasets.Dataset.from_list(rows, features=features).to_iterable_dataset(num_shards=4)
    data = stream.SegmentationStream(streamed_shards(stored, "drawn/train"), scenes.classes, "drawn", "train")
    wanted = None
    for _ in range(60):
        found = [sample.name for sample, _ in next(data.batches(0, 4, range(4), first=1))]
        assert wanted in (None, found)
        wanted = found

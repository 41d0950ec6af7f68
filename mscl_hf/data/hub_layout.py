"""Any data set with an image and a mask column, read by the `datasets` library: local or on the Hub, whole or streamed."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet

from .dataset import SegmentationData, Slice
from .files import SCAN_AT_MOST, class_names, make_table, slices_of
from .folder_layout import UnknownSplit, split_names
from .found_classes import found_classes
from .image_io import DECODE_ERRORS, IMAGE_SUFFIXES, cards, decode, named_files, refuse_packed, refuse_strays
from .mask_files import separate
from .shards import ParquetShard, StreamedShard
from .stream import SegmentationStream

IMAGE_COLUMNS = ("image", "images", "img", "pixel_values", "jpg", "photo")
MASK_COLUMNS = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask",
                "seg_map", "semantic_mask", "gt")  # fmt: skip
FILE_READERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
SAVED = ("state.json", "dataset_dict.json")  # in folders written by `save_to_disk`


def build_hf(
    split: str,
    data_dir: str | Path | None,
    unlabelled: bool = False,
    image_column: str | None = None,
    mask_column: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    classes: str | Path | Sequence[str] | None = None,
    num_classes: int | None = None,
    label_map: dict[int, int] | str | None = None,
    reduce_labels: bool = False,
) -> SegmentationData | SegmentationStream:
    """A split of what `data_dir` names: a folder of `save_to_disk`, a parquet file, a folder of parquet files or of images
    with metadata (`file_name`, `mask_file_name`), a name on the Hub (`subset`: its configuration; `revision`: its commit), or an address
    such as s3://bucket/folder that fsspec opens, with files SPLIT-*.parquet at any depth.

    classes: names, a text file, "a,b,c", or the name of a column of class labels that holds them. Without classes and
    num_classes they are found in the masks, which a stream does not allow. The columns volume and position (any numbers that rise along a
    volume), where there are both, say that the images are slices.
    """
    if data_dir is None:
        raise ValueError("the data set 'hf' needs --data-dir: a Hub name, a parquet file or a folder that `datasets` reads")
    rows = load_rows(str(data_dir), split, subset, revision, streaming)
    if Path(data_dir).is_dir():
        refuse_mask_files(Path(data_dir), split, subset, revision)
    features = features_of(rows, str(data_dir))
    if streaming and rows.features is not None:
        rows = rows.decode(False)  # the newer `datasets` has threads that decode files of the Hub, whatever a column is cast to
    columns = {"image": pick_column(features, image_column, IMAGE_COLUMNS, "image")}
    if not unlabelled:
        columns["mask"] = pick_column(features, mask_column, MASK_COLUMNS, "mask", taken=columns["image"])
    table = make_table(label_map, reduce_labels)
    named = () if unlabelled else class_names(column_classes(features, classes), num_classes)
    slices = None if streaming else stored_slices(rows)
    name = Path(data_dir).resolve().name if Path(data_dir).exists() else str(data_dir)
    if streaming and named is None:
        raise ValueError("a streamed data set cannot be searched for its classes; give --classes or --num-classes")
    if streaming and (files := parquet_files(str(data_dir), split, subset, revision)):
        shards = tuple(ParquetShard(file, tuple(columns.items())) for file in files)
        return SegmentationStream(shards, named, name, split, table)
    rows = rows.select_columns(list(columns.values()))
    for wanted, column in columns.items():
        rows = rows if column == wanted else rows.rename_column(column, wanted)
        rows = rows.cast_column(wanted, datasets.Image(decode=False))  # `decode` does it
    if streaming:
        repository = None if Path(data_dir).exists() or "://" in name else f"hf://datasets/{name}@"
        return SegmentationStream(streamed_shards(rows, f"{name}/{split}"), named, name, split, table, repository)
    rows = rows.add_column("name", row_names(rows))
    if named is None:
        named = found_classes(scanned_masks(rows), table)
    note = f"{len(rows)} images{'' if unlabelled else ' with masks'} in {data_dir}"
    return SegmentationData(rows, named, name, split, table, slices=slices, note=note)


def load_rows(
    name: str, split: str, subset: str | None, revision: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """Open one split. Raises ValueError naming the splits there are, or why the data set cannot be opened."""
    path = Path(name)
    if path.exists():  # `datasets` would unpack what it finds, and fetch what a folder's card names
        refuse_packed(path)
        refuse_strays(path)
    if path.is_file() and path.suffix not in FILE_READERS:
        raise ValueError(f"{path} is a file of an unknown kind; wanted one of {' '.join(FILE_READERS)}, a folder or a Hub name")
    try:
        if any((path / marker).is_file() for marker in SAVED):
            return saved_rows(path, split, streaming)
        source = source_of(name, split, subset, revision)
        there = datasets.get_dataset_split_names(
            source["path"],
            config_name=source.get("name"),
            data_files=source.get("data_files"),
            revision=revision,
        )
        return datasets.load_dataset(**source, split=there_is(split, there, name), streaming=streaming)
    except UnknownSplit:
        raise
    except (OSError, ConnectionError, ValueError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"`datasets` cannot open {name!r} ({type(error).__name__}: {error}); wanted a folder or file that is there, or a "
            "name on the Hub that can be reached"
        ) from error


def features_of(rows: datasets.Dataset | datasets.IterableDataset, name: str) -> datasets.Features:
    """Those stored, or told by the first row of a stream; ValueError where it has none."""
    if rows.features is not None:
        return rows.features
    try:
        return rows._resolve_features().features
    except StopIteration:
        raise ValueError(f"`datasets` cannot open {name!r}, which holds no row; give a place that has some") from None


def source_of(name: str, split: str, subset: str | None, revision: str | None) -> dict:
    """Arguments of `load_dataset`. In a local path, * ? [ and ] are escaped, which `datasets` reads as a pattern."""
    place = glob.escape(str(Path(name).resolve()))
    if Path(name).is_file():
        return {"path": FILE_READERS[Path(name).suffix], "data_files": {"train": place}}
    if Path(name).is_dir() and place != str(Path(name).resolve()):
        refuse_named_files(Path(name))
        files = DataFilesDict.from_patterns(get_data_patterns(place), base_path=place)
        return {"path": name, "name": subset, "data_files": {part: [*map(glob.escape, paths)] for part, paths in files.items()}}
    if "://" in name:
        return {"path": "parquet", "data_files": {split: f"{name.rstrip('/')}/**/{split}-*.parquet"}}
    return {"path": name, "name": subset, "revision": revision}


def refuse_named_files(folder: Path) -> None:
    """ValueError where a folder's card names its data files, and the path of the folder would be read as a part of their patterns."""
    card = next((card for card in cards(folder) if named_files(card)), None)
    if card is not None:
        raise ValueError(f"{card} names data files, and `datasets` reads *, ? or [ in the path as a pattern; rename the folder")


def refuse_mask_files(folder: Path, split: str, subset: str | None, revision: str | None) -> None:
    """ValueError where `datasets` reads a folder of image files without metadata, and some of the split's files are masks."""
    if any((folder / marker).is_file() for marker in SAVED):
        return
    builder = datasets.load_dataset_builder(**source_of(str(folder), split, subset, revision))
    if not isinstance(builder, ImageFolder):
        return
    files = [Path(file) for file in builder.config.data_files[there_is(split, list(builder.config.data_files), str(folder))]]
    if any(file.name in ImageFolder.METADATA_FILENAMES for file in files):
        return
    root = folder.resolve()
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_relative_to(root)]
    separated = separate(images, root)
    if separated.left_out:
        raise ValueError(
            f"--dataset is hf, which reads each of the {len(images)} files of {folder} as an image, and {separated.left_out} of them are "
            "masks. Give --dataset folder, or name image and mask of each row in a metadata.jsonl (file_name, mask_file_name)"
        )


def parquet_files(name: str, split: str, subset: str | None, revision: str | None) -> list[str]:
    """Paths or addresses of a split's parquet files, in their order; [] where it is stored in another form. It can be opened, see above."""
    if any((Path(name) / marker).is_file() for marker in SAVED):
        return []
    builder = datasets.load_dataset_builder(**source_of(name, split, subset, revision))
    files = builder.config.data_files or {}
    there = there_is(split, list(files), name) if isinstance(builder, Parquet) else None
    return [] if there is None else [str(file) for file in files[there]]


def streamed_shards(rows: datasets.IterableDataset, name: str) -> tuple[StreamedShard, ...]:
    """The parts that `datasets` itself can divide such rows into: files of WebDataset, Arrow or JSON lines; one, where it cannot."""
    parts = rows.num_shards
    return tuple(StreamedShard(name if parts == 1 else f"{name} part {part}", rows.shard(parts, part)) for part in range(parts))


def saved_rows(path: Path, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """A folder written by `save_to_disk`; a single Dataset is the split that it was saved as ('train' if it says none)."""
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or "train"): saved}
    rows = saved[there_is(split, list(saved), str(path))]
    return rows.to_iterable_dataset() if streaming else rows


def there_is(split: str, there: Sequence[str], where: str) -> str:
    """The split's own name there, or another that means the same: val, valid and validation. Raises UnknownSplit."""
    for name in split_names(split):
        if name in there:
            return name
    raise UnknownSplit(f"no split {split!r} in {where}; the splits there: {', '.join(there)}", split, there)


def pick_column(features: datasets.Features, given: str | None, common: Sequence[str], what: str, taken: str = "") -> str:
    """The column named, or the only one with a common name that holds images."""
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    if given is not None:
        if given not in features or not holds_images(features[given]):
            raise ValueError(f"the {what} column {given!r} is not there or holds no images; the columns there: {columns}")
        return given
    found = [name for name in features if name.lower() in common and name != taken and holds_images(features[name])]
    if len(found) != 1:
        state = f"several columns may be the {what} column ({', '.join(found)})" if found else f"no {what} column was recognised"
        raise ValueError(f"{state}; name it with --{what}-column; the columns there: {columns}")
    return found[0]


def holds_images(feature: Any) -> bool:
    """An Image column, or encoded images as plain parquet stores them: bytes, or a struct of bytes and path."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) == "binary"


def column_classes(features: datasets.Features, classes: Any) -> Any:
    """The class names of the column that `classes` names, or `classes` itself."""
    feature = features.get(classes) if isinstance(classes, str) else None
    if feature is None:
        return classes
    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, datasets.ClassLabel):
        raise ValueError(f"the column {classes!r} holds no class labels to take the names from; give the names themselves")
    return inner.names


def row_names(rows: datasets.Dataset) -> list[str]:
    """The stems of the stored paths where every row has one and they differ, else the row numbers."""
    paths = pc.struct_field(rows.with_format("arrow")[:]["image"], "path").to_pylist()
    stems = [Path(path).stem if path else "" for path in paths]
    if all(stems) and len(set(stems)) == len(stems):
        return stems
    return [f"row_{index:06d}" for index in range(len(rows))]


def stored_slices(rows: datasets.Dataset) -> tuple[Slice, ...] | None:
    """From the columns volume and position; None where they are not there, or do not place every row."""
    if not all(isinstance(rows.features.get(column), datasets.Value) for column in ("volume", "position")):
        return None
    volumes, positions = rows["volume"][:], rows["position"][:]
    if any(volume is None for volume in volumes) or not all(isinstance(position, int | float) for position in positions):
        return None
    return slices_of([str(volume) for volume in volumes], positions)


def scanned_masks(rows: datasets.Dataset) -> Any:
    """(description, mask) of at most SCAN_AT_MOST evenly spaced rows; the images are not decoded."""
    masks = rows.with_format("arrow")
    for index in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SCAN_AT_MOST)).astype(int)).tolist():
        mask = masks[index]["mask"][0].as_py()
        try:
            if mask is not None:
                yield f"of row {index}", decode(mask["path"], mask["bytes"])
        except DECODE_ERRORS as error:
            yield f"of row {index}", error

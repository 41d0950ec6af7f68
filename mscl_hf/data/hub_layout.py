"""`--dataset hf`: a data set with image and mask columns, read by the `datasets` library: local or on the Hub, whole or streamed."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet

from .class_colors import color_table
from .class_inference import infer_classes
from .dataset import SegmentationData, Slice
from .files import scanned_masks, slices_of
from .folder_names import UnknownSplit, available_split
from .image_io import IMAGE_SUFFIXES, cards, named_files, reject_archives, reject_outside_files
from .label_map import class_names, make_table
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
    data_revision: str | None = None,
    streaming: bool = False,
    classes: str | Path | Sequence[str] | None = None,
    num_classes: int | None = None,
    label_map: dict[int, int] | str | None = None,
    reduce_labels: bool = False,
    class_colors: str | Path | dict | None = None,
    ignored_colors: Sequence[str] | None = None,
) -> SegmentationData | SegmentationStream:
    """Open a split of `data_dir`: a folder of `save_to_disk`, a parquet file, a folder of parquet files or of images with metadata
    (`file_name`, `mask_file_name`), a name on the Hub (`subset`: its configuration; `data_revision`: its commit), or an address such as
    s3://bucket/folder that fsspec opens, with files SPLIT-*.parquet at any depth.

    classes: names, a text file, "a,b,c", or the name of a column of class labels. Without classes and num_classes they are inferred from
    the masks, unless the data is streamed. Columns volume and position (numbers that rise along a volume) mark the images as slices.
    """
    if data_dir is None:
        raise ValueError("--data-dir is missing; --dataset hf needs a Hub name, a parquet file or a folder that `datasets` reads.")
    rows = load_rows(str(data_dir), split, subset, data_revision, streaming)
    if Path(data_dir).is_dir():
        reject_mask_files(Path(data_dir), split, subset, data_revision)
    features = features_of(rows, str(data_dir))
    if streaming and rows.features is not None:
        rows = rows.decode(False)  # newer versions of `datasets` decode files of the Hub in threads, whatever a column is cast to
    columns = {"image": pick_column(features, image_column, IMAGE_COLUMNS, "image")}
    if not unlabelled:
        columns["mask"] = pick_column(features, mask_column, MASK_COLUMNS, "mask", taken=columns["image"])
    table = make_table(label_map, reduce_labels)
    names = class_names(column_classes(features, classes), num_classes)
    colors = color_table(class_colors, ignored_colors, names, label_map=label_map, reduce_labels=reduce_labels)
    names = () if unlabelled else colors.classes if colors else names
    name = Path(data_dir).resolve().name if Path(data_dir).exists() else str(data_dir)
    if streaming:
        if names is None:
            raise ValueError("--streaming is given without class names, which a stream does not give. Give --classes or --num-classes.")
        if files := files_of(str(data_dir), split, subset, data_revision, Parquet):
            shards = tuple(ParquetShard(file, tuple(columns.items())) for file in files)
            return SegmentationStream(shards, names, name, split, table, colors=colors)
        repository = None if Path(data_dir).exists() or "://" in name else f"hf://datasets/{name}@"
        shards = streamed_shards(encoded_columns(rows, columns), f"{name}/{split}")
        return SegmentationStream(shards, names, name, split, table, repository, colors=colors)
    slices = stored_slices(rows)
    rows = encoded_columns(rows, columns)
    rows = rows.add_column("name", row_names(rows))
    names = infer_classes(scanned_masks(rows), table) if names is None else names
    note = f"{len(rows)} images{'' if unlabelled else ' with masks'} in {data_dir}"
    return SegmentationData(rows, names, name, split, table, slices=slices, note=note, colors=colors)


def encoded_columns(rows: Any, columns: dict[str, str]) -> Any:
    """Return only the columns image and mask, as encoded images. columns: their names in the data set."""
    rows = rows.select_columns(list(columns.values()))
    for target, column in columns.items():
        rows = rows if column == target else rows.rename_column(column, target)
        rows = rows.cast_column(target, datasets.Image(decode=False))  # decoded by `image_io.decode`
    return rows


def load_rows(
    name: str, split: str, subset: str | None, revision: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """Open one split. Raises UnknownSplit with the available splits, or ValueError with the reason why `datasets` fails."""
    path = Path(name)
    if path.exists():  # `datasets` would unpack archives, and download files that a card names
        reject_archives(path)
        reject_outside_files(path)
    if path.is_file() and path.suffix not in FILE_READERS:
        raise ValueError(f"--data-dir is {path}; expected a folder, a Hub name or a file of {' '.join(FILE_READERS)}.")
    try:
        if any((path / marker).is_file() for marker in SAVED):
            return saved_rows(path, split, streaming)
        source = source_of(name, split, subset, revision)
        available = datasets.get_dataset_split_names(
            source["path"], config_name=source.get("name"), data_files=source.get("data_files"), revision=revision
        )
        return datasets.load_dataset(**source, split=available_split(split, available, name), streaming=streaming)
    except UnknownSplit:
        raise
    except (OSError, ConnectionError, ValueError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"--data-dir is {name}, which `datasets` cannot open ({type(error).__name__}: {error}). Give an existing folder or file, or a "
            "name on the Hub that can be reached."
        ) from error


def features_of(rows: datasets.Dataset | datasets.IterableDataset, name: str) -> datasets.Features:
    """Return the stored features, or those of a stream's first row. Raises ValueError if there is none."""
    if rows.features is not None:
        return rows.features
    try:
        return rows._resolve_features().features
    except StopIteration:
        raise ValueError(f"--data-dir is {name}, which has no rows; expected at least one. Give another data set.") from None


def source_of(name: str, split: str, subset: str | None, revision: str | None) -> dict:
    """Return arguments of `load_dataset`. In a local path, * ? [ and ] are escaped, which `datasets` reads as a pattern."""
    escaped = glob.escape(str(Path(name).resolve()))
    if Path(name).is_file():
        return {"path": FILE_READERS[Path(name).suffix], "data_files": {"train": escaped}}
    if Path(name).is_dir() and escaped != str(Path(name).resolve()):
        if card := next((card for card in cards(Path(name)) if named_files(card)), None):  # whose patterns would begin with the path
            raise ValueError(f"{card} names data files, and `datasets` reads *, ? or [ in its path as a pattern. Rename the folder.")
        files = DataFilesDict.from_patterns(get_data_patterns(escaped), base_path=escaped)
        return {"path": name, "name": subset, "data_files": {part: [*map(glob.escape, paths)] for part, paths in files.items()}}
    if "://" in name:
        return {"path": "parquet", "data_files": {split: f"{name.rstrip('/')}/**/{split}-*.parquet"}}
    return {"path": name, "name": subset, "revision": revision}


def reject_mask_files(folder: Path, split: str, subset: str | None, revision: str | None) -> None:
    """Raise ValueError if `datasets` reads a folder of image files without metadata, and some of the split's files are masks."""
    files = [Path(file) for file in files_of(str(folder), split, subset, revision, ImageFolder)]
    if any(file.name in ImageFolder.METADATA_FILENAMES for file in files):
        return
    root = folder.resolve()
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_relative_to(root)]
    separated = separate(images, root)
    if separated.left_out:
        raise ValueError(
            f"--dataset is hf, which reads each of the {len(images)} files of {folder} as an image, and {separated.left_out} of them are "
            "masks. Give --dataset folder, or name image and mask of each row in a metadata.jsonl (file_name, mask_file_name)."
        )


def files_of(name: str, split: str, subset: str | None, revision: str | None, reader: type) -> list[str]:
    """Return paths or addresses of a split's files, in their order, if `datasets` reads them by this builder; else []."""
    if any((Path(name) / marker).is_file() for marker in SAVED):
        return []
    builder = datasets.load_dataset_builder(**source_of(name, split, subset, revision))
    files = builder.config.data_files or {}
    return [str(file) for file in files[available_split(split, list(files), name)]] if isinstance(builder, reader) else []


def streamed_shards(rows: datasets.IterableDataset, name: str) -> tuple[StreamedShard, ...]:
    """Return the parts into which `datasets` can divide the rows: files of WebDataset, Arrow or JSON lines; else one part."""
    parts = rows.num_shards
    return tuple(StreamedShard(name if parts == 1 else f"{name} part {part}", rows.shard(parts, part)) for part in range(parts))


def saved_rows(path: Path, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """Open a folder written by `save_to_disk`; a single Dataset is the split that it was saved as, or else 'train'."""
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or "train"): saved}
    rows = saved[available_split(split, list(saved), str(path))]
    return rows.to_iterable_dataset() if streaming else rows


def pick_column(features: datasets.Features, name: str | None, usual: Sequence[str], content: str, taken: str = "") -> str:
    """Return the named column, or the only one with a usual name, that holds images."""
    columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    if name is not None:
        if name not in features or not holds_images(features[name]):
            raise ValueError(f"--{content}-column is {name!r}; expected a column of images. The columns are {columns}.")
        return name
    matches = [column for column in features if column.lower() in usual and column != taken and holds_images(features[column])]
    if len(matches) != 1:
        state = f"{', '.join(matches)} may each hold the {content}s" if matches else f"no column has a usual name for {content}s"
        raise ValueError(f"{state}; the columns are {columns}. Name one by --{content}-column.")
    return matches[0]


def holds_images(feature: Any) -> bool:
    """Return whether a column holds images: an Image column, or as plain parquet stores them, bytes or a struct of bytes and path."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) == "binary"


def column_classes(features: datasets.Features, classes: Any) -> Any:
    """Return the class names of the column that `classes` names, or `classes` itself."""
    feature = features.get(classes) if isinstance(classes, str) else None
    if feature is None:
        return classes
    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, datasets.ClassLabel):
        raise ValueError(f"--classes is the column {classes!r}; expected a column of class labels. Give one, or the names.")
    return inner.names


def row_names(rows: datasets.Dataset) -> list[str]:
    """Return the stems of the stored paths if every row has one and they differ, else row numbers."""
    paths = pc.struct_field(rows.with_format("arrow")[:]["image"], "path").to_pylist()
    stems = [Path(path).stem if path else "" for path in paths]
    if all(stems) and len(set(stems)) == len(stems):
        return stems
    return [f"row_{index:06d}" for index in range(len(rows))]


def stored_slices(rows: datasets.Dataset) -> tuple[Slice, ...] | None:
    """Return the slices of the columns volume and position; None without these columns, or if some rows have no values."""
    if not all(isinstance(rows.features.get(column), datasets.Value) for column in ("volume", "position")):
        return None
    volumes, positions = rows["volume"][:], rows["position"][:]
    if any(volume is None for volume in volumes) or not all(isinstance(position, int | float) for position in positions):
        return None
    return slices_of([str(volume) for volume in volumes], positions)

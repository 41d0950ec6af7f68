"""What follows from the labels that the masks hold: fewer than two classes in training are an error, other gaps are warnings."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import datasets
import numpy as np

from ..config import DataConfig
from ..messages import first_three
from .dataset import IGNORE_INDEX, SegmentationData
from .duplicates import compared_rows, shared_images
from .files import SCAN_AT_MOST, make_table, parse_label_map
from .hub_layout import scanned_masks
from .palettes import different_palettes
from .pixels import BadSample, index_array
from .stream import SegmentationStream

OWN_MASKS = ("folder", "hf")  # data sets whose masks may need a label map; the others have their own


def stored_ids(data: SegmentationData) -> list[int]:
    """The ids in the masks as they are stored, sorted: of at most SCAN_AT_MOST masks, evenly spaced. Drawn masks hold train ids."""
    if not isinstance(data.rows, datasets.Dataset):
        return data.labels.present if data.labels else []
    ids = set()
    for where, mask in scanned_masks(data.rows):
        with contextlib.suppress(BadSample):  # the check of the data names the file
            if not isinstance(mask, Exception):
                ids.update(np.unique(index_array(mask, {"mask": where}.get)).tolist())
    return sorted(ids)


def require_classes(data: SegmentationData | SegmentationStream, ids: Sequence[int], options: DataConfig) -> None:
    """Raise ValueError where the masks to train on leave fewer than two classes, of which every prediction would be right.

    data: with the counts of its labels. ids: stored in its masks. Where only the first rows of a stream are known, one class in them is an
    error if the ignored label, or --pixel-reduction-labels, explains it. A class that vanishes at the training size counts.
    """
    counts, explained = data.labels, options.reduce_labels or IGNORE_INDEX in ids and not options.label_map
    if len(counts.stored) > 1 or (counts.stored and counts.total is None and not explained):
        return
    seen = f"the {'first ' if counts.total is None else ''}{counts.read} masks" if isinstance(data, SegmentationStream) else "the masks"
    left = f"only {data.classes[counts.stored[0]]!r} is labelled" if counts.stored else "no pixel is labelled"
    causes = ["--pixel-reduction-labels ignores the id 0"] if options.reduce_labels else []
    causes += [f"the label map is {options.label_map}"] if options.label_map else []
    causes += ["255 is the ignored label"] if IGNORE_INDEX in ids and not options.label_map else []
    because = f" ({', '.join(causes)})" if causes else ""
    raise ValueError(
        f"{seen} of {data.name}/{data.split} hold the ids {_listed_ids(ids)}, and {left}{because}; expected pixels of at least two "
        f"classes. {_remedy(ids, options, counts.total is None)}"
    )


def require_two_classes(training: SegmentationData | SegmentationStream | None, held_out: SegmentationData | None) -> None:
    """Raise ValueError where the labels known of a stream, and all that are held out, are of one class: every prediction would be right."""
    counts = [None if data is None else data.labels for data in (training, held_out)]
    if None in counts or len(counts[0].stored) != 1 or counts[0].stored != counts[1].stored:
        return
    name = training.classes[counts[0].stored[0]]
    raise ValueError(
        f"the first {counts[0].read} masks of {training.name}/{training.split} and all of {held_out.name}/{held_out.split} hold only the "
        f"class {name!r}; expected pixels of at least two classes. Give more masks, or correct them or --classes"
    )


def _listed_ids(ids: Sequence[int]) -> str:
    return f"{', '.join(map(str, ids[:10]))}{', ...' if len(ids) > 10 else ''}" or "none"


def _remedy(ids: Sequence[int], options: DataConfig, is_part: bool) -> str:
    if options.label_map:
        return "Correct the label map or the masks"
    leave_out = "Leave out --pixel-reduction-labels" if options.reduce_labels else ""
    if IGNORE_INDEX in ids:
        free = next(i for i in range(IGNORE_INDEX + 1) if i not in {*ids} - {IGNORE_INDEX})
        give = f"{'and if' if leave_out else 'If'} 255 marks an object, give --label-map 255:{free}"
        keep = "; if it is to be ignored, give --label-map 255:255" if is_part else ""
        return f"{leave_out}, {give}" if leave_out else give + keep
    return leave_out or "Give more masks, or correct them"


def label_warnings(
    training: Sequence[SegmentationData | SegmentationStream | None], held_out: SegmentationData | None, options: DataConfig
) -> list[str]:
    """What the masks cannot teach or measure, and which images are in two splits, a sentence each.

    training: the parts of the training data, labelled or not. The labels of parts that were not counted are passed over.
    """
    parts = [part for part in training if part is not None]
    warnings = [sentence for part in parts for sentence in _never_trained(part)]
    warnings += [] if held_out is None else _hardly_measured(held_out)
    if options.label_map and options.dataset in OWN_MASKS:
        warnings += _unused_entries([*parts, held_out], options.label_map)
    labelled = [part for part in (*parts, held_out) if isinstance(part, SegmentationData)]
    warnings += [sentence for part in labelled if (sentence := different_palettes(part))]
    warnings += [sentence for part in parts for sentence in _in_two_splits(part, held_out)]
    return warnings


def _never_trained(data: SegmentationData | SegmentationStream) -> list[str]:
    counts = data.labels
    vanished = [] if counts is None else [data.classes[i] for i in counts.vanished]
    missing = [] if counts is None else [name for i, name in enumerate(data.classes) if i not in counts.stored]
    sentences = []
    if vanished:
        sentences = [
            f"{len(vanished)} of {data.num_classes} classes vanish where the masks of {data.name}/{data.split} are brought to "
            f"{data.short_side} px on the short side: {first_three(vanished)}; a larger --base-size keeps them (0 = as stored)"
        ]
    if not missing:
        return sentences
    which = "the" if counts.read == counts.total else "the first" if counts.total is None else "the examined"
    where = f"in none of {which} {counts.read} masks of {data.name}/{data.split}"
    return [*sentences, f"{len(missing)} of {data.num_classes} classes occur {where}: {first_three(missing)}"]


def _hardly_measured(data: SegmentationData) -> list[str]:
    where = f"{data.name}/{data.split}"
    if data.labels is None or len(data.labels.present) > 1:
        return []
    if not data.labels.present:
        return [f"no pixel of {where} is labelled, so that the mean IoU on it is undefined"]
    return [f"only the class {data.classes[data.labels.present[0]]} is labelled in {where}, so that the mean IoU on it compares no classes"]


def _unused_entries(parts: Sequence[SegmentationData | SegmentationStream | None], label_map: str) -> list[str]:
    labelled = [part for part in parts if isinstance(part, SegmentationData) and part.labelled]
    if not labelled:
        return []
    ids = {i for part in labelled for i in stored_ids(part)}
    unused = [f"{stored}:{train}" for stored, train in parse_label_map(label_map).items() if stored not in ids]
    looked_at = sum(min(len(part), SCAN_AT_MOST) for part in labelled)
    where = f"in none of {looked_at} masks"
    return [f"the label map has entries whose stored id occurs {where}: {first_three(unused)}"] if unused else []


def _in_two_splits(first: SegmentationData | SegmentationStream, second: SegmentationData | None) -> list[str]:
    if second is None or isinstance(first, SegmentationStream):
        return []
    names = shared_images(first, second)
    if not names:
        return []
    where = f"of {len(second)} images of {second.name}/{second.split} are also in {first.name}/{first.split}"
    compared = [(len(compared_rows(data)), data) for data in (first, second)]
    limits = [f"; {n} of {len(data)} images of {data.name}/{data.split} were compared" for n, data in compared if n < len(data)]
    return [f"{len(names)} {where}, byte for byte: {first_three(names)}{''.join(limits)}"]


def label_fields(options: DataConfig) -> dict[str, dict[str, int] | bool | None]:
    """How the options read masks, as fields of a model's configuration."""
    train_ids = parse_label_map(options.label_map) if options.label_map else None
    label_map = train_ids and {str(stored): train for stored, train in train_ids.items()}
    return {"label_map": label_map, "reduce_labels": options.reduce_labels}


def with_labels_of_model(
    options: DataConfig, label_map: dict[str, int] | None, reduce_labels: bool, log: Callable[[str], None] = print
) -> tuple[DataConfig, list[str]]:
    """The options with the label map of a model's training where they give none, which is logged, and warnings.

    label_map, reduce_labels: of the model's configuration. Raises ValueError where the options and the model's training map one id to
    different classes. A map of other ids may be right for another data set, and is a warning.
    """
    in_model = (",".join(f"{stored}:{train}" for stored, train in (label_map or {}).items()) or None, reduce_labels)
    in_options = (options.label_map, options.reduce_labels)
    if options.dataset not in OWN_MASKS or in_options == in_model:
        return options, []
    model_flags, option_flags = _in_flags(*in_model), _in_flags(*in_options)
    if not options.label_map and not options.reduce_labels:
        log(f"the masks are read as in the model's training: {model_flags}")
        return replace(options, label_map=in_model[0], reduce_labels=reduce_labels), []
    model_ids, option_ids = _mapped(*in_model), _mapped(*in_options)
    if any(model_ids[i] != option_ids[i] for i in model_ids.keys() & option_ids.keys()):
        raise ValueError(
            f"the option is {option_flags}; expected that of the model's training, {model_flags}. Leave it out to take the model's"
        )
    differ = model_ids != option_ids
    return options, [f"the masks are read by {option_flags}, and those of the model's training by {model_flags}"] if differ else []


def _in_flags(label_map: str | None, reduce_labels: bool) -> str:
    return f"--label-map {label_map}" if label_map else "--pixel-reduction-labels" if reduce_labels else "no label map"


def _mapped(label_map: str | None, reduce_labels: bool) -> dict[int, int]:
    """{stored id: train id} of the ids that the options name; --pixel-reduction-labels names all."""
    if reduce_labels:
        return dict(enumerate(make_table(None, True).tolist()))
    return parse_label_map(label_map) if label_map else {}

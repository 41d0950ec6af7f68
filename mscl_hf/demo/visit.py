"""What one visitor of the page looks at: an image, up to two checkpoints, and a pixel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..models.loading import split_revision
from .similarity import View, open_checkpoint, read_image, view_of

open_cached = lru_cache(maxsize=4)(open_checkpoint)


@dataclass(frozen=True, eq=False)
class Visit:
    """What one visitor looks at.

    image: (H, W, 3) of the file at path, see `read_image`; None without an image. note: how it was changed, or None.
    names: of the two checkpoints, "" for none. views: of the image, by name. point: x, y in px of the image. errors: messages.
    """

    path: str | None = None
    image: np.ndarray | None = None
    note: str | None = None
    names: tuple[str, ...] = ("", "")
    views: dict[str, View] = field(default_factory=dict)
    point: tuple[int, int] | None = None
    errors: tuple[str, ...] = ()

    def with_inputs(self, path: str | None, names: Sequence[str | None], models: Sequence[str], local: bool, max_side: int) -> Visit:
        """Return the visit with this image and these checkpoints; a network runs only on an image that it has not seen yet.

        models, local: see `checkpoint_name`. max_side: see `read_image`.
        """
        visit, errors, checked_names, views = self, [], [], {}
        if path != self.path or self.image is None:
            visit = Visit(path)
            try:
                visit = visit if path is None else Visit(path, *read_image(path, max_side))
            except ValueError as error:
                errors.append(str(error))
        for name in names:
            try:
                name = checkpoint_name(name, models, local)
                network = open_cached(name, None if local or name in models else False) if name else None
                if network is not None and visit.image is not None:
                    views[name] = visit.views.get(name) or view_of(network, visit.image)
            except ValueError as error:
                errors.append(str(error))
            except Exception as error:  # the configuration of an untrusted checkpoint can fail anywhere in its network
                logging.getLogger(__name__).exception("cannot show %s", name)
                errors.append(f"{name} failed ({type(error).__name__}; the log has the details). Choose another checkpoint.")
            checked_names.append(name)
        return replace(visit, names=tuple(checked_names), views=views, errors=tuple(dict.fromkeys(errors)))

    def with_point(self, x: float | None, y: float | None) -> Visit:
        """Return the visit with the point (x, y), moved into the image."""
        if self.image is None:
            return replace(self, errors=("There is no image; the page deletes images after an hour. Choose an image.",))
        if x is None or y is None:
            return self
        height, width = self.image.shape[:2]
        return replace(self, point=(min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1)))


def checkpoint_name(text: str | None, models: Sequence[str], local: bool) -> str:
    """Return the name that a visitor typed or chose, "" for none.

    local: whether folders of this machine are accepted. If not, ValueError for a name that is neither in models nor a name on the Hub.
    """
    name = (text or "").strip()
    if not name or local or name in models:
        return name
    try:
        validate_repo_id(split_revision(name)[0])
        is_hub_name = "/" in name and not Path(name).exists()
    except HFValidationError:
        is_hub_name = False
    if not is_hub_name:
        raise ValueError(f"Checkpoint is {name!r}; expected OWNER/NAME of a model on the Hub.")
    return name

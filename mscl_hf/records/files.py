"""Read text with any byte order mark, write text and JSON atomically, and find the files that belong to the package."""

import codecs
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".tmp-"  # prefix of files and folders that are still being written
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # by byte order mark


def hub_folder() -> Path:
    """Return the folder `hub` with the metric, the Spaces and the templates of the cards, in an installed package or a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "hub", package.parent / "hub") if folder.is_dir())


def read_text(path: str | Path) -> str:
    """Return the text of a file in the encoding of its byte order mark, else in UTF-8. Raises UnicodeDecodeError."""
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: to a temporary file, which is then renamed."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside `path`, which replaces it at the end, in a folder that is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)

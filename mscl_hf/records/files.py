"""Files of text and JSON: read with or without a byte order mark, written whole or not at all."""

import codecs
import json
import os
from pathlib import Path

UNFINISHED = ".tmp-"  # starts the name of what is not written to its end
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # as Windows programs write them


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark announces. Raises UnicodeDecodeError."""
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)

def write_json(path: Path, content) -> None:
    """Write through a temporary file, so that a reader never sees half of it."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

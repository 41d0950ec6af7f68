"""Text files that people write, with or without a byte order mark."""

import codecs
from pathlib import Path

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # as Windows programs write them


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark announces. Raises UnicodeDecodeError."""
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)

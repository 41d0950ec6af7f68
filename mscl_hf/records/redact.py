"""Remove secrets and local folders from text that is published or attached to a bug report."""

import os
import re
from pathlib import Path
from typing import Any

SECRET_NAMES = re.compile("TOKEN|SECRET|PASSW|PASSPHRASE|KEY|CREDENTIAL|CONNECTION|AUTH|COOKIE", re.IGNORECASE)  # of environment variables
# The folders of a path in quotation marks, which may contain spaces, and of any other path.
QUOTED_FOLDERS = re.compile(r"""(?<=['"])(?:[A-Za-z]:)?[/\\][^'"\n]*[/\\](?=[^'"/\\\n]*['"])""")
FOLDERS = re.compile(r"(?<![\w.~/\\])(?:[A-Za-z]:[/\\]|\\\\|/)(?:[^\s/\\'\":,;()]+[/\\])+")


def without_secrets(text: str, token: str | None = None) -> str:
    """Return the text in one line without `token`, other tokens, and the user names, passwords and queries of URLs."""
    text = " ".join(text.split())
    if token:
        text = text.replace(token, "hf_***")
    text = re.sub(r"(?i)\b(bearer) [\w.~+/=-]+", r"\1 ***", re.sub(r"\bhf_\w{8,}", "hf_***", text))
    return re.sub(r"(\w://[^\s?'\"]+)\?[^\s'\")]+", r"\1", re.sub(r"(\w://)[^\s/@]+@", r"\1", text))


def clean(text: str, out: Path, one_line: bool = True) -> str:
    """Return the text without secrets, the values of environment variables named like secrets, and local folders.

    out: the output folder, shown as OUT. one_line: join all lines.
    """
    secrets = [value for name, value in os.environ.items() if SECRET_NAMES.search(name) and len(value) >= 6]
    sources = Path(__file__).resolve().parents[2]
    home = os.path.expanduser("~")  # stays "~" where the home folder is unknown, as in some containers
    replacements = {str(out.resolve()): "OUT", str(out): "OUT", str(sources): "SOURCES", str(Path.cwd()): ".", home: "~"}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "***")
    lines = []
    for line in [" ".join(text.split())] if one_line else text.splitlines():
        for folder, name in replacements.items():
            line = line.replace(folder, name) if len(folder) > 1 else line
        line = re.sub(r'"[^"\n]*/(?:site-packages|lib/python[\d.]+)/', '"', line)
        line = FOLDERS.sub(".../", QUOTED_FOLDERS.sub(".../", re.sub(r"\bfile:/+", "/", line)))
        indent = line[: len(line) - len(line.lstrip())]
        lines.append(indent + without_secrets(line))
    return "\n".join(lines)


def cleaned(content: Any, out: Path) -> Any:
    """Return nested dicts and lists with `clean` applied to every text."""
    if isinstance(content, dict):
        return {key: cleaned(value, out) for key, value in content.items()}
    if isinstance(content, list):
        return [cleaned(value, out) for value in content]
    return clean(content, out) if isinstance(content, str) else content


def public(text: str) -> str:
    """Return the value of an option for publication: a path outside the working folder becomes its last name, secrets are removed.

    Several values are separated by commas.
    """

    def last_name(part: str) -> str:
        names = re.split(r"[/\\]+", part)
        is_outside = re.match(r"[/\\~]|[A-Za-z]:|[\w+.-]+:/", part) or ".." in names
        return next((name for name in reversed(names) if name not in ("", ".", "..")), "DIR") if is_outside else part

    return ",".join(map(last_name, without_secrets(text).split(",")))

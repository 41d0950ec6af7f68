"""Text for others to read: without secrets, and without the folders of this machine."""

import os
import re
from pathlib import Path


def without_secrets(text: str, token: str | None = None) -> str:
    """One line, without the token, anything that looks like one, and who asks or what signs it in addresses."""
    text = " ".join(text.split())
    if token:
        text = text.replace(token, "hf_***")
    text = re.sub(r"(?i)\b(bearer) [\w.~+/=-]+", r"\1 ***", re.sub(r"\bhf_\w{8,}", "hf_***", text))
    return re.sub(r"(\w://[^\s?'\"]+)\?[^\s'\")]+", r"\1", re.sub(r"(\w://)[^\s/@]+@", r"\1", text))

SECRET = re.compile("TOKEN|SECRET|PASSW|PASSPHRASE|KEY|CREDENTIAL|CONNECTION|AUTH|COOKIE", re.IGNORECASE)  # in names of the environment
# The folders of a path: one in quotes, with its blanks, and any other one.
QUOTED = re.compile(r"""(?<=['"])(?:[A-Za-z]:)?[/\\][^'"\n]*[/\\](?=[^'"/\\\n]*['"])""")  # blanks and all
FOLDERS = re.compile(r"(?<![\w.~/\\])(?:[A-Za-z]:[/\\]|\\\\|/)(?:[^\s/\\'\":,;()]+[/\\])+")


def clean(text: str, out: Path, one_line: bool = True) -> str:
    """The text without what `without_secrets` takes out, the values of environment variables that are named like secrets, and the folders
    of this machine."""
    secrets = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 6]
    sources = Path(__file__).resolve().parents[2]
    home = os.path.expanduser("~")  # itself where nobody knows one, as in some containers
    places = {str(out.resolve()): "OUT", str(out): "OUT", str(sources): "SOURCES", str(Path.cwd()): ".", home: "~"}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "***")
    lines = []
    for line in [" ".join(text.split())] if one_line else text.splitlines():
        for place, name in places.items():
            line = line.replace(place, name) if len(place) > 1 else line
        line = re.sub(r'"[^"\n]*/(?:site-packages|lib/python[\d.]+)/', '"', line)
        line = FOLDERS.sub(".../", QUOTED.sub(".../", re.sub(r"\bfile:/+", "/", line)))
        indent = line[: len(line) - len(line.lstrip())]
        lines.append(indent + without_secrets(line))
    return "\n".join(lines)


def cleaned(content, out: Path):
    """Every text in it."""
    if isinstance(content, dict):
        return {key: cleaned(value, out) for key, value in content.items()}
    if isinstance(content, list):
        return [cleaned(value, out) for value in content]
    return clean(content, out) if isinstance(content, str) else content

def public(text: str) -> str:
    """A value without the folders of the machine that it stands for, or a secret; several by commas."""
    def short(part: str) -> str:
        steps = re.split(r"[/\\]+", part)
        elsewhere = re.match(r"[/\\~]|[A-Za-z]:|[\w+.-]+:/", part) or ".." in steps
        return next((step for step in reversed(steps) if step not in ("", ".", "..")), "DIR") if elsewhere else part

    return ",".join(map(short, without_secrets(text).split(",")))

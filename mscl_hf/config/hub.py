"""Push of the result to the Hugging Face Hub."""

import re
from dataclasses import dataclass

from ..records.redact import without_secrets
from .fields import Section, option

BRANCH = r"(?!.*(\.\.|//|/\.|\.lock(/|$)|[./]$))\w[\w./-]*"  # git's rules for names, without rare characters


@dataclass(frozen=True)
class HubConfig(Section):
    """Repository on the Hugging Face Hub to push the result to."""

    push_to_hub: str | None = option(None, "ORG/NAME on the Hugging Face Hub to push the result to (default: no push)")
    private: bool = option(False, "make the repository private")
    revision: str | None = option(None, "branch of --push-to-hub to push to; it is created if missing (default: main)")
    license: str | None = option(None, "license of the weights as the Hub names it: apache-2.0, cc-by-4.0, other, ... (default: none)")

    def __post_init__(self):
        super().__post_init__()
        if self.push_to_hub is None:
            for name in ("private", "revision"):
                if getattr(self, name):
                    raise ValueError(f"--{name} is given without --push-to-hub. Give --push-to-hub ORG/NAME as well.")
            return
        from huggingface_hub.errors import HFValidationError  # imported here: --help does not need the Hub's client
        from huggingface_hub.utils import validate_repo_id

        reason = "a user or organization and a repository" if self.push_to_hub.count("/") != 1 else None
        try:
            validate_repo_id(self.push_to_hub)
        except HFValidationError as error:
            reason = reason or str(error).rstrip(".")
        if reason:
            raise ValueError(without_secrets(f"--push-to-hub is {self.push_to_hub!r}; expected ORG/NAME ({reason})."))
        if self.revision is not None and not re.fullmatch(BRANCH, self.revision):
            raise ValueError(f"--revision is {self.revision!r}; expected the name of a branch, such as main or v2.")

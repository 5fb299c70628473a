"""Refusals counted by reason, from a list that is fixed when the program is written: what strangers send adds none."""

from __future__ import annotations

from collections.abc import Iterable

import knot_keys.certificates  # noqa: F401  # its error is one of those with a code
from knot_ssh.errors import codes

OTHER = "other"
CODES = tuple(codes())
"""The codes of errors, for doors that refuse with one."""


class Refusals:
    """How often something was refused for each reason; one that is not on the list counts as `other`."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.counts = dict.fromkeys((*reasons, OTHER), 0)

    def count(self, reason: str) -> None:
        """One refusal; what stands after a colon is for people."""
        name = reason.partition(":")[0]
        self.counts[name if name in self.counts else OTHER] += 1

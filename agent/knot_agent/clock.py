"""Whether our clock agrees with the server's. Certificates are dated by the server's and judged by everybody's own."""

from __future__ import annotations

import structlog
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import BACKDATE, starts_at

log = structlog.get_logger(__name__)

SKEW = 30.0
"""Seconds of difference to put up with: half of what certificates are dated back by, so that the warning comes in time."""


class Clock:
    """Warns of a difference when it is there, and again when it has changed."""

    def __init__(self) -> None:
        self._told = 0.0

    def compare(self, issued: SSHOpenSSHCertificate, now: float) -> None:
        """A certificate that was issued this moment says what time it is at the server."""
        skew = now - (starts_at(issued) + BACKDATE)
        if abs(skew - self._told) <= SKEW:
            return
        self._told = skew if abs(skew) > SKEW else 0.0
        if self._told:
            direction = "ahead of" if skew > 0 else "behind"
            log.warning("clock differs", seconds=round(abs(skew)), reason=f"ours is {direction} the server's: set it right")
        else:
            log.info("clock agrees with the server's again")

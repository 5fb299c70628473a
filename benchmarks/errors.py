"""What can go wrong while measuring."""

from __future__ import annotations


class Failed(Exception):
    """A peer or a tool did not do what was asked of it. The text is the reason that the table shows."""


class Missing(Failed):
    """A peer cannot run on this machine."""


class NotApplicable(Failed):
    """A row has no meaning for a peer, such as SSH logins for one that does not speak SSH."""

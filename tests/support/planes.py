"""Data planes for tests that run in pytest's own event loop."""

from __future__ import annotations

from knot_ssh.dataplane.limits import Limits
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.reactor import AsyncioReactor


def stock_plane(limits: Limits | None = None) -> DataPlane:
    """A data plane that any event loop carries."""
    return DataPlane(AsyncioReactor(), limits or Limits(), fast=False)

"""Keys for the tests of certificates."""

from __future__ import annotations

import asyncssh
import pytest

from knot_keys.keyfiles import new_key


@pytest.fixture(scope="session")
def ca() -> asyncssh.SSHKey:
    """A certificate authority."""
    return new_key("CA")


@pytest.fixture(scope="session")
def key() -> asyncssh.SSHKey:
    """The key of a client or host."""
    return new_key("key")

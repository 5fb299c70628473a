"""Somebody who measures how long it takes to be told that a token is wrong."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from knot_ssh.errors import NotAuthenticated
from knot_ssh.names import Owner
from tests.support.figures import Figure
from tests.unit.knot_server.conftest import ALICE, ROOT, World, world

__all__ = ["world"]
SHA256 = 64
"""Characters of a hash, which is what is compared."""


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is compared in constant time from now on."""
    found: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def spy(a: str, b: str) -> bool:
        found.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    return found


@pytest.mark.threat(19, "wrong API tokens, right up to any character", "found by public id; hashes compared in constant time")
async def test_api_tokens(world: World, compared: list[tuple[str, str]], figure: Figure) -> None:
    """A secret never meets the store's: only hashes of both do, once for each try, however much of it is right."""
    prefix, number, secret = (await world.users.create(ROOT, Owner("carol"))).token.split("_")
    for right in range(0, len(secret), 8):
        wrong = secret[:right] + ("0" if secret[right] != "0" else "1") + secret[right + 1 :]
        with pytest.raises(NotAuthenticated):
            await world.tokens.authenticate(f"{prefix}_{number}_{wrong}")
    tries = len(compared)
    with pytest.raises(NotAuthenticated):
        await world.tokens.authenticate(f"{prefix}_{'f' * len(number)}_{secret}")
    figure(f"{tries} tries, {tries} comparisons of hashes; an unknown id: {len(compared) - tries}")
    assert tries == len(range(0, len(secret), 8))
    assert all(len(a) == len(b) == SHA256 and secret not in (a, b) for a, b in compared)
    assert {b for _, b in compared[:tries]} == {hashlib.sha256(bytes.fromhex(secret)).hexdigest()}


@pytest.mark.threat(19, "wrong join tokens", "found by public id; hashes compared in constant time")
async def test_join_tokens(world: World, compared: list[tuple[str, str]], figure: Figure) -> None:
    """The same for the secrets of join tokens."""
    _, token = await world.invited(ALICE, "backend")
    for right in range(len(token.secret)):
        wrong = token.secret[:right] + bytes([token.secret[right] ^ 1]) + token.secret[right + 1 :]
        assert not await world.enrolment.knows_token(token.id, wrong)
    tries = len(compared)
    assert not await world.enrolment.knows_token("0" * len(token.id), token.secret)
    figure(f"{tries} tries, {tries} comparisons of hashes; an unknown id: {len(compared) - tries}")
    assert tries == len(token.secret)
    assert {(len(a), b) for a, b in compared[:tries]} == {(SHA256, hashlib.sha256(token.secret).hexdigest())}

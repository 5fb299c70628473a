"""Proof of possession: good for one key and one purpose."""

from __future__ import annotations

import base64

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_keys.keyfiles import new_key
from knot_keys.possession import for_host_key, for_joining, is_proof, prove
from knot_ssh.names import SpaceId
from tests.unit.strategies import space_ids

SPACE = SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")
KEY = new_key("agent")
NONCE, TOKEN_ID = "ab" * 32, "00112233445566aa"

hexadecimal = st.text("0123456789abcdef", min_size=1, max_size=64)


@pytest.mark.parametrize("message", [for_joining(NONCE, TOKEN_ID), for_host_key(SPACE)], ids=["join", "host"])
def test_proof_is_checked_with_the_public_half(message: bytes) -> None:
    """Who holds the private half proves it to who has the public one."""
    assert is_proof(KEY.convert_to_public(), message, prove(KEY, message))


def test_proof_of_another_key() -> None:
    """A signature by another key proves nothing."""
    message = for_host_key(SPACE)
    assert not is_proof(KEY.convert_to_public(), message, prove(new_key("other"), message))


def test_public_half_proves_nothing() -> None:
    """Who has only the public half of a key cannot sign with it."""
    with pytest.raises((asyncssh.Error, ValueError)):
        prove(KEY.convert_to_public(), for_host_key(SPACE))


def test_proof_for_another_purpose() -> None:
    """A proof is good for its purpose, nonce, token and space alone."""
    messages = [
        for_joining(NONCE, TOKEN_ID),
        for_joining(NONCE[::-1], TOKEN_ID),
        for_joining(NONCE, TOKEN_ID[::-1]),
        for_joining(TOKEN_ID, NONCE),
        for_joining("", SPACE),
        for_host_key(SPACE),
        for_host_key(SpaceId.new()),
    ]
    key, proofs = KEY.convert_to_public(), [prove(KEY, message) for message in messages]
    for one, message in enumerate(messages):
        assert [is_proof(key, message, proof) for proof in proofs] == [one == other for other in range(len(proofs))]


@given(hexadecimal, hexadecimal, hexadecimal, hexadecimal)
def test_messages_for_joining_differ(nonce: str, token: str, other_nonce: str, other_token: str) -> None:
    """No two pairs of nonce and token are signed alike."""
    same = (nonce, token) == (other_nonce, other_token)
    assert (for_joining(nonce, token) == for_joining(other_nonce, other_token)) == same


@given(space_ids, hexadecimal, hexadecimal)
def test_host_key_is_not_a_join(space: SpaceId, nonce: str, token: str) -> None:
    """What is signed for a host key is never what is signed for joining."""
    assert for_host_key(space) != for_joining(nonce, token)


def test_proof_is_one_line_of_ascii() -> None:
    """A proof is base64 of an SSH signature, and fits where the messages have it."""
    proof = prove(KEY, for_host_key(SPACE))
    assert base64.b64decode(proof, validate=True).startswith(b"\0\0\0\x0bssh-ed25519")
    assert len(proof) <= 512


@given(st.text() | st.binary(max_size=100).map(lambda data: base64.b64encode(data).decode()))
def test_other_text_is_no_proof(text: str) -> None:
    """Whatever is sent in place of a signature, it is no proof and no crash."""
    assert not is_proof(KEY.convert_to_public(), for_host_key(SPACE), text)


@pytest.mark.parametrize("place", range(0, 83, 6))
def test_damaged_proof(place: int) -> None:
    """A signature of which one byte differs, or that lost its end, is no proof."""
    message = for_host_key(SPACE)
    raw = bytearray(base64.b64decode(prove(KEY, message)))
    short = bytes(raw[:place])
    raw[place] ^= 1
    for damaged in (bytes(raw), short):
        assert not is_proof(KEY.convert_to_public(), message, base64.b64encode(damaged).decode())


def test_proof_with_white_space() -> None:
    """A proof has one spelling: white space in it is refused."""
    message = for_host_key(SPACE)
    proof = prove(KEY, message)
    for text in (proof + "\n", " " + proof, proof[:10] + "\n" + proof[10:]):
        assert not is_proof(KEY.convert_to_public(), message, text)

"""The join token: read back as it was printed, or not at all, and never shown in an error."""

from __future__ import annotations

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_keys.jointoken import JoinToken, hash_secret, matches
from knot_keys.keyfiles import new_key, public_line
from knot_ssh.errors import BadInput

CA = new_key("CA").convert_to_public()
TOKEN = JoinToken.new(CA)


def test_round_trip() -> None:
    """A token is read back from its text: id, secret and CA."""
    read = JoinToken.parse(str(TOKEN))
    assert (read.id, read.secret, list(map(public_line, read.host_cas))) == (TOKEN.id, TOKEN.secret, [public_line(CA)])


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32))
def test_round_trip_of_any_bytes(number: bytes, secret: bytes) -> None:
    """Whatever id and secret chance gives, the token is one word and reads back."""
    token = JoinToken(number.hex(), secret, (CA,))
    text = str(token)
    assert JoinToken.parse(text) == token
    assert text.replace("-", "").replace("_", "").isalnum()


def test_two_cas() -> None:
    """A token made while the host CA is changed for another names both, the active one first."""
    cas = (CA, new_key("next").convert_to_public())
    token = JoinToken.new(*cas)
    assert JoinToken.parse(str(token)).host_cas == cas
    assert len(str(token)) == len(str(TOKEN)) + 43


@pytest.mark.parametrize("padding", [" {}", "{}\n", "\n{}\r\n", "\t{} "])
def test_white_space_around_it(padding: str) -> None:
    """White space around a copied token does not matter."""
    assert JoinToken.parse(padding.format(TOKEN)) == TOKEN


def test_tokens_differ() -> None:
    """No two tokens share an id or a secret."""
    tokens = [JoinToken.new(CA) for _ in range(100)]
    assert len({token.id for token in tokens}) == len({token.secret for token in tokens}) == 100


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text[:-4],
        lambda text: text + "A",
        lambda text: text + "AAAA",
        lambda text: text.removeprefix("knotjoin_"),
        lambda text: text.upper(),
        lambda text: "knotjoin_" + text,
        lambda text: text.replace("knotjoin_", "knot_"),
        lambda text: text[:20] + " " + text[20:],
        lambda text: text[:20] + "\n" + text[20:],
        lambda text: text[:20] + "é" + text[21:],
        lambda text: text[:20] + "\0" + text[21:],
        lambda text: text[:20] + "=" + text[21:],
        lambda text: text * 2,
        lambda text: "knotjoin_",
    ],
)
def test_other_text_is_no_token(change: object) -> None:
    """What is not a whole token is refused, in words that do not quote it."""
    assert callable(change)
    text = change(str(TOKEN))
    with pytest.raises(BadInput, match="the join token is not one") as caught:
        JoinToken.parse(text)
    assert text[10:] == "" or text[10:] not in str(caught.value)


def test_secret_is_not_printed() -> None:
    """The repr, which may get into a log, has no secret."""
    shown = repr(TOKEN)
    assert TOKEN.id in shown
    assert TOKEN.secret.hex() not in shown
    assert repr(TOKEN.secret) not in shown
    assert str(TOKEN) not in shown


def test_hash_matches_its_secret_alone() -> None:
    """A stored hash matches the secret it was made of, and is not the secret."""
    stored = hash_secret(TOKEN.secret)
    assert matches(TOKEN.secret, stored)
    assert not matches(TOKEN.secret[:-1] + bytes([TOKEN.secret[-1] ^ 1]), stored)
    assert not matches(b"", stored)
    assert TOKEN.secret.hex() not in stored


def test_token_of_a_private_ca_key_holds_the_public_half() -> None:
    """Only the public half of the CA is in a token."""
    private = new_key("CA")
    token = JoinToken.new(private.convert_to_public())
    with pytest.raises(asyncssh.KeyExportError):
        JoinToken.parse(str(token)).host_cas[0].export_private_key()

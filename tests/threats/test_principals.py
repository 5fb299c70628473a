"""Certificates whose principals are a game: commas, duplicates, nothing, other owners; and games with the login name."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knot_keys.certificates import CertificateRefused, check_client, read_certificate
from knot_keys.keyfiles import new_key
from knot_keys.revocation import NOTHING_REVOKED
from knot_ssh.names import Principal
from tests.conftest import Pair
from tests.faults.beds import FULL
from tests.support.figures import Figure
from tests.support.rawssh import Denied, RawSSH, Refused
from tests.threats.test_identities import certified
from tests.threats.test_strangers import Strangers

EXAMPLES = 2_000 if FULL else 200
PARTS = [
    "alice@eu",
    "alice@us",
    "bob@eu",
    "alice@eu,bob@eu",
    "",
    ",",
    "*",
    "alice",
    "eu",
    "@",
    "alice@",
    "ALICE@eu",
    "alice@eu ",
]
AN_ID = "0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c"
KEY_IDS = ["person/alice/eu/-/-", "person/alice/eu,us/-/-", f"agent/alice/eu/backend/{AN_ID}", "person/bob/eu/-/-", "", "x"]
RIGHT = [(["alice@eu"], KEY_IDS[0]), (["alice@eu", "alice@us"], KEY_IDS[1]), (["alice@eu"], KEY_IDS[2])]
texts = st.sampled_from(PARTS) | st.text(alphabet="abeu@,*-. ", max_size=12)
FIELDS = st.sampled_from(RIGHT) | st.tuples(
    st.lists(texts, max_size=4), st.sampled_from(KEY_IDS) | st.text(alphabet="/aliceubobperson-,", max_size=20)
)
LOGINS = ("alice", "alice@eu", "bob", "bob@eu", "root", "", "alice@eu,bob@eu", "../x", "x" * 1000)


@pytest.mark.threat(3, f"{EXAMPLES} generated lists of principals, certified", "good only if one owner's, each zone once")
def test_generated_principals(figure: Figure) -> None:
    """Whatever stands in a certificate, who is let in has one owner, and exactly the principals that are written in it."""
    ca, key = new_key("ca"), new_key("client")
    good = refused = 0

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(FIELDS)
    def judged(fields: tuple[list[str], str]) -> None:
        nonlocal good, refused
        names, key_id = fields
        now = int(time.time())
        certificate = ca.generate_user_certificate(
            key, key_id, principals=names, valid_after=now - 60, valid_before=now + 600,
            permit_x11_forwarding=False, permit_agent_forwarding=False, permit_pty=False, permit_user_rc=False,
        )  # fmt: skip
        shown = read_certificate(certificate.export_certificate("openssh").decode())
        try:
            client = check_client(shown, [ca], NOTHING_REVOKED)
        except CertificateRefused:
            refused += 1
            return
        good += 1
        principals = list(client.identity.principals)
        assert [str(one) for one in principals] == shown.principals
        assert len({one.owner for one in principals}) == 1
        assert len(set(principals)) == len(principals) > 0
        assert all(Principal(one.owner, one.zone) == one for one in principals)

    judged()
    figure(f"{good} good, {refused} refused")
    assert good
    assert refused


@pytest.mark.threat(3, "login names that say who one would like to be", "they change nothing")
def test_login_names(pair: Pair, strangers: Strangers, figure: Figure) -> None:
    """At an endpoint bob is refused under every name, and alice's agent is let in as itself under each."""
    entered = {"bob": 0, "alice": 0}
    for owner in entered:
        key, certificate = certified(strangers[owner, "eu"])
        for login in LOGINS:
            with RawSSH.dial(pair.backend.endpoint()) as peer:
                try:
                    peer.prove(key, login, certificate)
                except Denied:
                    continue
                entered[owner] += 1
                peer.sock.sendall(peer.opening(1, host="192.0.2.1"))
                assert isinstance(peer.answer(), Refused)
    figure(f"of {len(LOGINS)} names: alice in under {entered['alice']}, bob under {entered['bob']}")
    assert entered == {"alice": len(LOGINS), "bob": 0}

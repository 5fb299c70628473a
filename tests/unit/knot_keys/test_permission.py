"""Whom a client certificate lets in: its own owner and zone, while it lasts and is not revoked."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_keys.certificates import ClientCertificate
from knot_keys.identity import Identity
from knot_keys.permission import outlives_its_ca, refuse_client
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from tests.unit.strategies import owners, principals, zones

OWN = Principal(Owner("alice"), Zone("eu"))
CLIENT = ClientCertificate(
    Identity.agent(OWN, SpaceName("frontend"), SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")),
    1,
    "SHA256:key",
    1000.0,
    "SHA256:ca",
)
CAS = {"SHA256:ca"}


def test_good_client() -> None:
    """A certificate for this owner and zone may open channels while it lasts."""
    assert refuse_client(CLIENT, OWN, CAS, NOTHING_REVOKED, 999.9) is None


@given(principals, principals)
def test_only_equal_owner_and_zone(own: Principal, theirs: Principal) -> None:
    """Another owner or another zone opens nothing."""
    client = dataclasses.replace(CLIENT, identity=Identity.agent(theirs, SpaceName("x"), SpaceId.new()))
    assert (refuse_client(client, own, CAS, NOTHING_REVOKED, 0) is None) == (own == theirs)


@given(owners, st.lists(zones, min_size=1, max_size=4), principals)
def test_a_person_enters_their_own_zones(owner: Owner, own: list[Zone], endpoint: Principal) -> None:
    """A person's certificate is good in each of its zones, and for no other owner."""
    client = dataclasses.replace(CLIENT, identity=Identity.person(owner, own))
    assert all(refuse_client(client, Principal(owner, zone), CAS, NOTHING_REVOKED, 0) is None for zone in own)
    assert (refuse_client(client, endpoint, CAS, NOTHING_REVOKED, 0) is None) == (
        endpoint.owner == owner and endpoint.zone in own
    )


@pytest.mark.parametrize("own", [Principal(Owner("bob"), Zone("eu")), Principal(Owner("alice"), Zone("us"))])
def test_other_owner_or_zone_is_the_reason(own: Principal) -> None:
    """The reason for the log says which rung it was."""
    assert refuse_client(CLIENT, own, CAS, NOTHING_REVOKED, 0) == "other owner or zone"


def test_revoked_client() -> None:
    """A certificate that is revoked, or whose key is, opens nothing; another's revocation does not matter."""
    assert refuse_client(CLIENT, OWN, CAS, RevocationList.of([1], []), 0) == "revoked"
    assert refuse_client(CLIENT, OWN, CAS, RevocationList.of([], ["SHA256:key"]), 0) == "revoked"
    assert refuse_client(CLIENT, OWN, CAS, RevocationList.of([2], ["SHA256:other"]), 0) is None


@pytest.mark.parametrize("now", [1000.0, 1000.1, 1e12])
def test_expired_client(now: float) -> None:
    """A connection that outlived its certificate opens no further channel."""
    assert refuse_client(CLIENT, OWN, CAS, NOTHING_REVOKED, now) == "certificate expired"


def test_revoked_counts_before_expired() -> None:
    """Of two reasons the log has the one that somebody decided."""
    assert refuse_client(CLIENT, OWN, CAS, RevocationList.of([1], []), 2000.0) == "revoked"


def test_certificate_of_a_retired_ca() -> None:
    """A certificate whose CA is trusted no more opens nothing, though it is good otherwise."""
    assert refuse_client(CLIENT, OWN, {"SHA256:new"}, NOTHING_REVOKED, 0) == "unknown CA"


@pytest.mark.parametrize(
    ("cas", "distrusted", "now", "ends"),
    [
        (CAS, [], 0, False),
        (set(), [], 999.9, True),
        (set(), [], 1000.0, False),
        (set(), ["SHA256:ca"], 1000.0, True),
        (set(), ["SHA256:other"], 1000.0, False),
    ],
    ids=["trusted", "retired", "retired after it ran out", "given up after it ran out", "another was given up"],
)
def test_what_a_retired_ca_has_opened(cas: set[str], distrusted: list[str], now: float, ends: bool) -> None:
    """A connection ends with its CA while its certificate would be good; one that has outlived that ends if the CA was given
    up by force."""
    assert outlives_its_ca(CLIENT, cas, distrusted, now) == ends

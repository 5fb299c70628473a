"""Identity becomes certificate fields and comes back; nothing else comes back as an identity."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_keys.identity import BadIdentity, HostIdentity, HubIdentity, Identity, Role, host_key_ids
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from tests.unit.strategies import owners, principals, space_ids, space_names, zones

AN_ID = "0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c"
AGENT = Identity.agent(Principal(Owner("alice"), Zone("eu")), SpaceName("backend"), SpaceId(AN_ID))
PERSON = Identity.person(Owner("alice"), [Zone("us"), Zone("eu")])
AGENT_KEY_ID = f"agent/alice/eu/backend/{AN_ID}"
PERSON_KEY_ID = "person/alice/eu,us/-/-"

identities = st.builds(Identity.agent, principals, space_names, space_ids) | st.builds(
    Identity.person, owners, st.lists(zones, min_size=1, max_size=5)
)


def test_sample_is_complete() -> None:
    """No field of the sample is empty, so that the round trip below carries every field there is."""
    assert [field.name for field in dataclasses.fields(AGENT) if not getattr(AGENT, field.name)] == []


def test_round_trip_of_the_sample() -> None:
    """A whole identity comes back as it went in."""
    assert Identity.decode(*AGENT.encode()) == AGENT


@given(identities)
def test_round_trip(identity: Identity) -> None:
    """Every identity comes back as it went in."""
    assert Identity.decode(*identity.encode()) == identity


@given(identities, identities)
def test_different_identities_have_different_fields(one: Identity, other: Identity) -> None:
    """No two identities are written alike."""
    assert (one.encode() == other.encode()) == (one == other)


def test_fields_of_an_agent() -> None:
    """An agent has one principal, owner@zone, and its key id tells role, owner, zone, space and id."""
    assert AGENT.encode() == (["alice@eu"], AGENT_KEY_ID)


def test_fields_of_a_person() -> None:
    """A person has one principal for each zone, in order, and no space."""
    assert PERSON.encode() == (["alice@eu", "alice@us"], PERSON_KEY_ID)


def test_zones_of_a_person_are_told_once() -> None:
    """A person with several spaces in a zone has one principal for it."""
    assert Identity.person(Owner("alice"), [Zone("us"), Zone("eu"), Zone("us")]) == PERSON


@pytest.mark.parametrize(
    ("names", "key_id"),
    [
        ([], AGENT_KEY_ID),
        ([], "agent/alice//backend/" + AN_ID),
        ([], "person/alice//-/-"),
        ([""], AGENT_KEY_ID),
        (["alice"], AGENT_KEY_ID),
        (["eu"], AGENT_KEY_ID),
        (["*"], AGENT_KEY_ID),
        (["alice@*"], "agent/alice/*/backend/" + AN_ID),
        (["alice@eu,bob@eu"], AGENT_KEY_ID),
        (["alice@eu,us"], "agent/alice/eu,us/backend/" + AN_ID),
        (["alice@eu", "alice@eu"], AGENT_KEY_ID),
        (["alice@eu", "alice@eu"], "person/alice/eu,eu/-/-"),
        (["alice@eu", "alice@us"], "agent/alice/eu,us/backend/" + AN_ID),
        (["alice@eu", "bob@eu"], "person/alice/eu,eu/-/-"),
        (["alice@eu", "bob@us"], "person/alice/eu,us/-/-"),
        (["alice@us", "alice@eu"], PERSON_KEY_ID),
        (["alice@us", "alice@eu"], "person/alice/us,eu/-/-"),
        (["alice@eu"], PERSON_KEY_ID),
        (["alice@eu", "alice@us"], "person/alice/eu/-/-"),
        (["bob@eu"], AGENT_KEY_ID),
        (["alice@us"], AGENT_KEY_ID),
        (["Alice@eu"], AGENT_KEY_ID),
        (["alice@eu "], AGENT_KEY_ID),
        (["alice@eu\n"], AGENT_KEY_ID),
        (["alice@eu", AN_ID], AGENT_KEY_ID),
        (["alice@eu"], ""),
        (["alice@eu"], "hub"),
        (["alice@eu"], AGENT_KEY_ID + "/"),
        (["alice@eu"], AGENT_KEY_ID + "\n"),
        (["alice@eu"], " " + AGENT_KEY_ID),
        (["alice@eu"], AGENT_KEY_ID.upper()),
        (["alice@eu"], f"root/alice/eu/backend/{AN_ID}"),
        (["alice@eu"], f"host/alice/eu/backend/{AN_ID}"),
        (["alice@eu"], "agent/alice/eu/-/-"),
        (["alice@eu"], "agent/alice/eu/backend/-"),
        (["alice@eu"], f"agent/alice/eu/-/{AN_ID}"),
        (["alice@eu"], f"agent/alice/eu/Backend/{AN_ID}"),
        (["alice@eu"], "agent/alice/eu/backend/1"),
        (["alice@eu"], f"agent/alice/eu/backend/{AN_ID.upper()}"),
        (["alice@eu"], f"person/alice/eu/backend/{AN_ID}"),
        (["alice@eu"], f"person/alice/eu/-/{AN_ID}"),
        ([AN_ID, "backend.alice.eu.knot"], f"host/alice/eu/backend/{AN_ID}"),
        (["hub.knot"], "hub"),
    ],
)
def test_decode_refuses_what_encode_does_not_write(names: list[str], key_id: str) -> None:
    """Commas, duplicates, nothing, two owners, another order, and fields that disagree are no identity."""
    with pytest.raises(BadIdentity):
        Identity.decode(names, key_id)


@given(st.lists(st.sampled_from(["alice@eu", "alice@us", "bob@eu", "", "alice@eu,alice@us", "*"]), max_size=4), identities)
def test_decode_gives_only_what_encodes_back(names: list[str], identity: Identity) -> None:
    """Whatever is read as an identity is written as exactly those fields again."""
    for key_id in (AGENT_KEY_ID, PERSON_KEY_ID, identity.encode()[1]):
        decoded = decoded_or_none(names, key_id)
        assert decoded is None or decoded.encode() == (names, key_id)


def decoded_or_none(names: list[str], key_id: str) -> Identity | None:
    """The identity in these fields."""
    try:
        return Identity.decode(names, key_id)
    except BadIdentity:
        return None


@pytest.mark.parametrize(
    ("role", "names", "space", "space_id"),
    [
        (Role.AGENT, (), "backend", AN_ID),
        (Role.AGENT, ("eu", "us"), "backend", AN_ID),
        (Role.AGENT, ("eu",), None, AN_ID),
        (Role.AGENT, ("eu",), "backend", None),
        (Role.PERSON, (), None, None),
        (Role.PERSON, ("us", "eu"), None, None),
        (Role.PERSON, ("eu", "eu"), None, None),
        (Role.PERSON, ("eu",), "backend", None),
        (Role.PERSON, ("eu",), None, AN_ID),
    ],
)
def test_impossible_identities_cannot_be_made(
    role: Role, names: tuple[str, ...], space: str | None, space_id: str | None
) -> None:
    """An agent has one zone, a space and its id; a person has zones in order, each once, and no space."""
    with pytest.raises(BadIdentity):
        Identity(
            role,
            Owner("alice"),
            tuple(map(Zone, names)),
            SpaceName(space) if space else None,
            SpaceId(space_id) if space_id else None,
        )


def test_fields_of_a_host() -> None:
    """An endpoint's certificate names the space's id and its full name."""
    host = HostIdentity(Principal(Owner("alice"), Zone("eu")), SpaceName("backend"), SpaceId(AN_ID))
    assert host.encode() == ([AN_ID, "backend.alice.eu.knot"], f"host/alice/eu/backend/{AN_ID}")


@given(st.builds(HostIdentity, principals, space_names, space_ids))
def test_host_comes_back(host: HostIdentity) -> None:
    """What is written of a host is read as the same host, in whatever order its names stand."""
    names, key_id = host.encode()
    assert HostIdentity.decode(names, key_id) == HostIdentity.decode(names[::-1], key_id) == host
    assert key_id.startswith(host_key_ids(host.principal, host.space))


HOST_KEY_ID = f"host/alice/eu/backend/{AN_ID}"


@pytest.mark.parametrize(
    ("names", "key_id"),
    [
        ([], HOST_KEY_ID),
        ([AN_ID], HOST_KEY_ID),
        (["backend.alice.eu.knot"], HOST_KEY_ID),
        ([AN_ID, AN_ID, "backend.alice.eu.knot"], HOST_KEY_ID),
        ([AN_ID, "backend.alice.eu.knot", "hub.knot"], HOST_KEY_ID),
        ([AN_ID, "other.alice.eu.knot"], HOST_KEY_ID),
        ([AN_ID, "backend.bob.eu.knot"], HOST_KEY_ID),
        ([AN_ID, "backend.alice.us.knot"], HOST_KEY_ID),
        ([AN_ID, "backend.alice.eu.knot"], HOST_KEY_ID.replace("host", "agent")),
        ([AN_ID, "backend.alice.eu.knot"], HOST_KEY_ID + "/"),
        ([AN_ID, "backend.alice.eu.knot"], HOST_KEY_ID.upper()),
        ([AN_ID, "backend.alice.eu.knot"], "hub"),
        ([AN_ID, "backend.alice.eu.knot"], ""),
        (["hub.knot"], "hub"),
        (["alice@eu"], AGENT_KEY_ID),
    ],
)
def test_decode_refuses_what_is_no_host(names: list[str], key_id: str) -> None:
    """Fields that disagree, too many or too few names, the hub's and a client's are no space's host."""
    with pytest.raises(BadIdentity):
        HostIdentity.decode(names, key_id)


@given(st.builds(HostIdentity, principals, space_names, space_ids))
def test_no_host_passes_for_the_hub_or_a_client(host: HostIdentity) -> None:
    """No space can be named so that its host certificate is the hub's, or reads as a client's."""
    names, key_id = host.encode()
    assert not set(names) & set(HubIdentity().encode()[0])
    assert decoded_or_none(names, key_id) is None

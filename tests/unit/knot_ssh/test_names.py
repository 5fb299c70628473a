"""Names are checked once, and hold nothing that needs escaping."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from knot_ssh.errors import BadInput
from knot_ssh.names import Label, Owner, Port, Principal, SpaceId, SpaceName, Zone, qualified_name, space_reference
from tests.unit.strategies import labels, principals, space_names

AN_ID = "0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c"

NOT_LABELS = [
    "", "-", "-a", "a-", "A", "a_b", "a.b", "a/b", "a b", "a,b", "a@b", "a\n", "\na", "a\0", "é", "\uff41",
    "a" * 64, "..", "%2e", "\u0661",
]  # fmt: skip


class Model(BaseModel):
    """As a request would use them."""

    space: SpaceName
    port: Port


def named(text: str) -> tuple[str, str]:
    """The name, or what is said against it."""
    try:
        return SpaceName(text), ""
    except BadInput as error:
        return "", str(error)


@pytest.mark.parametrize("text", ["a", "0", "a-b", "a--b", "a" * 63, "3000", "xn--nxasmq6b", "joined", "knot", "hub"])
@pytest.mark.parametrize("kind", [SpaceName, Owner, Zone])
def test_label_is_accepted(kind: type[Label], text: str) -> None:
    """Every DNS label is a name, and prints as it was written."""
    name = kind(text)
    assert (name, str(name), f"{name}") == (text, text, text)


@pytest.mark.parametrize("text", NOT_LABELS)
@pytest.mark.parametrize("kind", [SpaceName, Owner, Zone])
def test_other_text_is_no_name(kind: type[Label], text: str) -> None:
    """What is no DNS label is no name."""
    with pytest.raises(BadInput, match=kind.what):
        kind(text)


@pytest.mark.parametrize("text", ["join", AN_ID])
@pytest.mark.parametrize("kind", [SpaceName, Owner, Zone])
def test_reserved_text_is_no_name(kind: type[Label], text: str) -> None:
    """Neither the hub's login nor a UUID can be a name."""
    with pytest.raises(BadInput, match="choose another"):
        kind(text)


@given(st.text(max_size=100))
def test_any_text_is_a_label_or_refused_in_one_printable_line(text: str) -> None:
    """Whatever the text, a name made of it has only a-z, 0-9 and '-', and a refusal is one line that can be printed."""
    name, refusal = named(text)
    assert refusal.isprintable()
    assert len(refusal) < 800
    assert refusal or re.fullmatch(r"[a-z0-9-]{1,63}", name)


@given(labels)
def test_labels_never_contain_a_separator(text: str) -> None:
    """No name carries a character with a meaning in paths, principals, key ids or log lines."""
    assert not set(Owner(text)) & set("/@,. \t\r\n\0=\"'\\")


def test_refusal_quotes_at_most_80_characters() -> None:
    """A huge name does not make a huge error."""
    with pytest.raises(BadInput) as caught:
        SpaceName("a" * 100_000)
    assert len(str(caught.value)) < 250


def test_new_ids_are_uuids_and_differ() -> None:
    """A new space id is a UUID in lower case, and no two are the same."""
    ids = {SpaceId.new() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(str(uuid.UUID(text)) == text for text in ids)


@pytest.mark.parametrize(
    "text", ["", "a", AN_ID.upper(), AN_ID.replace("-", ""), f"{{{AN_ID}}}", f"{AN_ID}\n", f"urn:uuid:{AN_ID}"]
)
def test_other_spellings_are_no_id(text: str) -> None:
    """A UUID in any other spelling is no space id."""
    with pytest.raises(BadInput, match="space id"):
        SpaceId(text)


@pytest.mark.parametrize("number", [1, 80, 65535])
def test_port_in_range(number: int) -> None:
    """A port is a number from 1 to 65535, equal to that number."""
    assert Port(number) == number
    assert Port.parse(str(number)) == number


@pytest.mark.parametrize("number", [0, -1, 65536, 2**32 - 1, 2**64, 10**100])
def test_port_out_of_range(number: int) -> None:
    """Any other number is no port."""
    with pytest.raises(BadInput, match="from 1 to 65535"):
        Port(number)


@pytest.mark.parametrize(
    "text", ["", "0", "+1", "-1", " 1", "1 ", "1\n", "1_0", "0x50", "1e3", "8.0", "٣", "\uff18\uff10", "99999", "1" * 5000]
)
def test_port_from_other_text(text: str) -> None:
    """A port is read from plain decimal digits alone."""
    with pytest.raises(BadInput, match="from 1 to 65535"):
        Port.parse(text)


def test_reference_is_an_id_or_a_name() -> None:
    """What users write for a space is read as its id where it is a UUID, else as its name."""
    assert isinstance(space_reference(AN_ID), SpaceId)
    assert isinstance(space_reference("backend"), SpaceName)


@pytest.mark.parametrize("text", ["join", AN_ID.upper(), "../etc", ""])
def test_reference_to_neither(text: str) -> None:
    """What is neither an id nor a name refers to nothing."""
    with pytest.raises(BadInput):
        space_reference(text)


@given(principals)
def test_principal_round_trip(principal: Principal) -> None:
    """A principal is read back from its text."""
    assert Principal.parse(str(principal)) == principal


@pytest.mark.parametrize(
    "text", ["", "@", "alice", "alice@", "@eu", "alice@eu@us", "alice@eu,bob@eu", "Alice@eu", "alice@eu ", "*@eu"]
)
def test_other_text_is_no_principal(text: str) -> None:
    """What is not exactly owner@zone is no principal."""
    with pytest.raises(BadInput):
        Principal.parse(text)


@given(space_names, principals, space_names, principals)
def test_qualified_names_are_unique(one: SpaceName, his: Principal, other: SpaceName, hers: Principal) -> None:
    """Two spaces have the same qualified name only if name, owner and zone are the same."""
    assert (qualified_name(one, his) == qualified_name(other, hers)) == ((one, his) == (other, hers))


def test_qualified_name() -> None:
    """The qualified name is space, owner, zone and knot."""
    assert qualified_name(SpaceName("backend"), Principal(Owner("alice"), Zone("eu"))) == "backend.alice.eu.knot"


def test_in_a_model_names_are_checked_values() -> None:
    """A model holds the checked values, and dumps plain text and numbers."""
    model = Model.model_validate({"space": "backend", "port": 80})
    assert (type(model.space), type(model.port)) == (SpaceName, Port)
    assert model.model_dump_json() == '{"space":"backend","port":80}'


@pytest.mark.parametrize("space", ["Backend", "join", AN_ID, 7, None, True, ["backend"]])
def test_in_a_model_other_names_are_refused(space: object) -> None:
    """A model refuses what is no name, of whatever type."""
    with pytest.raises(ValidationError):
        Model.model_validate({"space": space, "port": 80})


@pytest.mark.parametrize("port", [0, 65536, 2**32 - 1, 10**400, "80", 80.0, 80.5, True, None, [80]])
def test_in_a_model_other_ports_are_refused(port: object) -> None:
    """A model takes a port from a whole number alone."""
    with pytest.raises(ValidationError):
        Model.model_validate({"space": "backend", "port": port})


def test_schema_tells_the_grammar() -> None:
    """The schema that users see has the grammar of names and the bounds of ports."""
    properties = Model.model_json_schema()["properties"]
    assert re.fullmatch(properties["space"]["pattern"], "backend")
    assert not re.fullmatch(properties["space"]["pattern"], "Back/end")
    assert (properties["port"]["minimum"], properties["port"]["maximum"]) == (1, 65535)

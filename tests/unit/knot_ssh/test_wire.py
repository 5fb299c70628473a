"""The messages: the same at every door, and nothing in them is guessed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from knot_ssh import wire
from knot_ssh.names import QUOTED_LIMIT
from knot_ssh.wire import (
    CertificateRequest,
    ForwardList,
    ForwardRequest,
    ForwardStates,
    ForwardStatus,
    Hello,
    JoinRequest,
    LinkModes,
    OnSpace,
    Revoked,
    StopRequest,
    first_complaint,
    shown,
)

FORWARD: dict[str, Any] = {"local_port": 8080, "space": "backend-api", "remote_port": 3000}
AN_ID = "0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c"

MESSAGES = [thing for thing in vars(wire).values() if isinstance(thing, type) and issubclass(thing, wire.Message)]


def complaint_of(model: type[BaseModel], values: object) -> str:
    """What is said of values that do not fit."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return first_complaint(caught.value)


def test_forward_request_defaults() -> None:
    """A forward needs two ports and a space; it is neither persistent nor forced unless that is said."""
    request = ForwardRequest.model_validate(FORWARD)
    assert (request.persistent, request.force) == (False, False)


@pytest.mark.parametrize("space", ["backend-api", AN_ID])
def test_forward_names_a_space_or_an_id(space: str) -> None:
    """The target is a name or an id."""
    assert ForwardRequest.model_validate(FORWARD | {"space": space}).space == space


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("local_port", 0), ("local_port", 65536), ("local_port", 2**32 - 1), ("local_port", "8080"), ("local_port", 8080.0),
        ("local_port", True), ("local_port", None), ("remote_port", 0), ("remote_port", -1), ("space", ""),
        ("space", "Backend"), ("space", "a/b"), ("space", "a\n"), ("space", "join"), ("space", 7), ("space", "a" * 64),
        ("persistent", 1), ("persistent", "yes"), ("persistent", None), ("force", 0), ("surprise", 1),
    ],
)  # fmt: skip
def test_forward_request_is_strict(field: str, value: object) -> None:
    """A field that is out of range, of another type or unknown is refused, and the complaint begins with its name."""
    assert complaint_of(ForwardRequest, FORWARD | {field: value}).startswith(f"{field}: ")


@pytest.mark.parametrize("field", sorted(FORWARD))
def test_forward_request_is_whole(field: str) -> None:
    """No field of a forward may be left out but those with defaults."""
    rest = {name: value for name, value in FORWARD.items() if name != field}
    assert complaint_of(ForwardRequest, rest).startswith(f"{field}: ")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_messages_refuse_unknown_fields_and_change(message: type[wire.Message]) -> None:
    """Every message refuses a field that it does not know, and cannot be changed once made."""
    assert message.model_config.get("extra") == "forbid"
    assert message.model_config.get("frozen") is True


def test_there_are_messages() -> None:
    """The test above has something to look at."""
    assert len(MESSAGES) > 15


def test_stop_needs_a_port() -> None:
    """A request to stop names the port."""
    assert complaint_of(StopRequest, {}) == "local_port: is missing"


def test_source_may_be_left_out() -> None:
    """Without a source, it is the space of the agent that asks."""
    assert OnSpace.model_validate({}).source is None
    assert OnSpace.model_validate({"source": None}).source is None


@pytest.mark.parametrize("addresses", [["x"] * 17, ["x" * 301], "127.0.0.1:1", [7]])
def test_hello_is_bounded(addresses: object) -> None:
    """An agent cannot announce more addresses, or longer ones, than make sense."""
    assert complaint_of(Hello, {"version": "1", "addresses": addresses}).startswith("addresses")


@pytest.mark.parametrize("address", ["", "nonsense", "10.0.0.7", "10.0.0.7:99999", "10.0.0.7:22\n", "a b:22"])
def test_hello_announces_addresses(address: str) -> None:
    """What an agent announces is host:port: others will dial it."""
    assert complaint_of(Hello, {"version": "1", "addresses": [address]}).startswith("addresses.0: ")


def test_hello_keeps_addresses() -> None:
    """Addresses arrive as they were announced."""
    addresses = ["10.0.0.7:2022", "[fd00::7]:2022", "backend.internal:2022"]
    assert Hello.model_validate({"version": "1", "addresses": addresses}).addresses == addresses


def test_revoked_is_both_lists() -> None:
    """What is void is told as serials and keys, either of which may be empty but not left out."""
    largest = 2**63 - 1
    read = Revoked.model_validate_json(Revoked(serials=[1, largest], keys=["SHA256:x"]).model_dump_json())
    assert (read.serials, read.keys) == ([1, largest], ["SHA256:x"])
    assert Revoked.model_validate({"serials": [], "keys": []}) == Revoked(serials=[], keys=[])
    assert complaint_of(Revoked, {"keys": []}) == "serials: is missing"
    assert complaint_of(Revoked, {"serials": []}) == "keys: is missing"
    assert complaint_of(Revoked, {"serials": ["x"], "keys": []}).startswith("serials.0: ")


def test_certificate_request_proves() -> None:
    """A host key is not certified without a signature, and neither may be beyond any real one."""
    assert complaint_of(CertificateRequest, {"host_key": "x"}) == "signature: is missing"
    assert complaint_of(CertificateRequest, {"host_key": "x" * 2049, "signature": ""}).startswith("host_key: ")
    assert complaint_of(CertificateRequest, {"host_key": "", "signature": "x" * 513}).startswith("signature: ")


@pytest.mark.parametrize("text", ["", "backend", "two words", "a" * QUOTED_LIMIT])
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    """A sender's text that is short and printable ASCII is repeated as it is."""
    assert shown(text) == text


@given(st.text() | st.text(alphabet="\x1b\r\n\0\u2028\u202e\ud800a", max_size=200))
def test_any_text_is_shown_short_on_one_line(text: str) -> None:
    """Whatever the sender's text, what an error repeats is printable ASCII, on one line, and no longer than a few words."""
    repeated = shown(text)
    assert repeated.isascii()
    assert repeated == "" or repeated.isprintable()
    assert len(repeated) <= 10 * QUOTED_LIMIT + 5


def test_join_request_is_bounded() -> None:
    """A key or signature beyond any real one is refused unread."""
    assert complaint_of(JoinRequest, {"public_key": "x" * 2049, "signature": ""}).startswith("public_key: ")
    assert complaint_of(JoinRequest, {"public_key": "", "signature": "x" * 513}).startswith("signature: ")


@pytest.mark.parametrize("state", ["starting", "listening", "waiting", "failed", "stopped"])
def test_status_states(state: str) -> None:
    """A status is in one of the five states, and reads back as it was written."""
    status = ForwardStatus.model_validate(
        {"local_port": 1, "space": "a", "space_id": AN_ID, "remote_port": 2, "persistent": False, "state": state}
    )
    assert ForwardStatus.model_validate_json(status.model_dump_json()) == status


def test_complaint_reads_like_a_sentence() -> None:
    """A complaint names the field and what it must be, without the library's own words."""
    assert complaint_of(ForwardRequest, FORWARD | {"local_port": 0}) == "local_port: must be greater than or equal to 1"
    assert complaint_of(ForwardRequest, FORWARD | {"space": "A"}).startswith("space: space name 'A' must be 1 to 63 of")


def test_complaint_about_the_whole() -> None:
    """Where no field is to blame, the complaint is the sentence alone."""
    assert complaint_of(ForwardRequest, []).startswith("must be")


@pytest.mark.parametrize("field", ["a\nb", "a\x1b[2Jb", "a\rb", "a\0b", "a\u2028b", "x" * 10_000])
def test_complaint_is_one_short_printable_line(field: str) -> None:
    """Whatever the sender called a field, the complaint is one line that can be printed."""
    text = complaint_of(ForwardRequest, FORWARD | {field: 1})
    assert text.isprintable()
    assert len(text) < 500


def test_reports_know_every_state() -> None:
    """Whatever state a forward can have while its agent holds it, and whatever mode a link, a report has a place for it."""
    status = ForwardStatus.model_json_schema()["properties"]
    assert set(ForwardStates.model_fields) == set(status["state"]["enum"]) - {"stopped"}
    modes = next(kind["enum"] for kind in status["mode"]["anyOf"] if "enum" in kind)
    assert set(LinkModes.model_fields) == {*modes, "down"}


def test_what_agents_say_is_harmless() -> None:
    """Free text of an agent can do nothing to a terminal, and its names are names."""
    escape = "\x1b[2Jgone\nknot: hm"
    status = {"local_port": 1, "space": "a", "space_id": None, "remote_port": 2, "persistent": False, "state": "failed"}
    shown = ForwardStatus.model_validate(status | {"reason": escape, "address": escape, "bind": escape})
    assert {shown.reason, shown.address, shown.bind} == {"\\x1b[2Jgone knot: hm"}
    assert ForwardList.model_validate({"forwards": [], "file_error": escape}).file_error == "\\x1b[2Jgone knot: hm"
    with pytest.raises(ValidationError):
        ForwardStatus.model_validate(status | {"space": escape})


def test_a_version_is_short() -> None:
    """What the log shows of every hello cannot fill it."""
    assert complaint_of(Hello, {"version": "1" * 65, "addresses": []}).startswith("version: ")

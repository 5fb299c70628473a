"""Valid messages, made from the models that the product checks them with: what is added there is fuzzed from then on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from pydantic import BaseModel

from knot_keys.keyfiles import public_line
from knot_ssh.rpc import Method, Peer
from tests.fuzz import values

WORDS: dict[str, object] = {
    "id": str(values.BACKEND_ID),
    "space_id": str(values.FRONTEND_ID),
    "target_id": str(values.BACKEND_ID),
    "space": "backend-api",
    "name": "backend-api",
    "owner": "alice",
    "zone": "eu",
    "addresses": ["10.0.0.7:2022"],
    "local_port": 28080,
    "user_ca": public_line(values.USER_CA),
    "host_ca": public_line(values.HOST_CA),
}
"""What fields of these names hold, so that a message makes sense."""


def calls(methods: Mapping[str, Method]) -> list[tuple[str, dict[str, Any]]]:
    """Each method with parameters that it takes."""
    return [(name, sample(model)) for name, (model, _) in methods.items()]


def sample(model: type[BaseModel]) -> dict[str, Any]:
    """A valid message, with every field."""
    schema = model.model_json_schema()
    made: dict[str, Any] = _value(schema, schema.get("$defs", {}), "")
    return made


def _value(schema: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> Any:
    """A value of this JSON Schema, in which pydantic describes a field."""
    if "$ref" in schema:
        return _value(definitions[schema["$ref"].rpartition("/")[2]], definitions, name)
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], definitions, name)
    if "properties" in schema:
        return {field: WORDS.get(field) or _value(part, definitions, field) for field, part in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_value(schema["items"], definitions, name)]
    return schema.get("enum", [schema.get("const", _plain(schema))])[0]


def _plain(schema: Mapping[str, Any]) -> object:
    """A word, a number, or nothing much."""
    word = "2027-01-15T08:00:00Z" if schema.get("format") == "date-time" else "text"
    number = schema.get("minimum", 1)
    return {"integer": number, "number": number, "boolean": False, "object": {}}.get(schema.get("type", ""), word)


@contextmanager
def remembering(made: list[Peer]) -> Iterator[None]:
    """Remember the peers that are made meanwhile."""
    make = Peer.__init__

    def remembered(peer: Peer, *args: Any) -> None:
        make(peer, *args)
        made.append(peer)

    with mock.patch.object(Peer, "__init__", remembered):
        yield

"""What schemathesis loads beside its configuration (`hooks` in `schemathesis.toml`)."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(_context: schemathesis.HookContext, body: Any) -> Any:
    """Write whole numbers as such: for JSON Schema 8080.0 is an integer, this API takes none with a decimal point."""
    match body:
        case dict():
            return {name: map_body(_context, value) for name, value in body.items()}
        case list():
            return [map_body(_context, value) for value in body]
        case float() if body.is_integer():
            return int(body)
        case _:
            return body

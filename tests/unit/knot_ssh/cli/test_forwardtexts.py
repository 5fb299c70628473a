"""The wording of lists and plans."""

from __future__ import annotations

from typing import Any

import pytest

from knot_ssh.cli import forwardtexts
from knot_ssh.wire import Applied, AppliedForward, Counters, ForwardStatus

ENTRY: dict[str, Any] = {
    "local_port": 8080,
    "space": "backend-api",
    "space_id": None,
    "remote_port": 3000,
    "persistent": False,
    "state": "listening",
    "mode": "direct",
}
COUNTED = Counters(sent=1500, received=0, open=2, total=3, refused=0, since="2026-01-01T00:00:00Z").model_dump(mode="json")


def entry(**changed: object) -> dict[str, Any]:
    """A forward as the API answers it."""
    return ForwardStatus.model_validate(ENTRY | changed).model_dump(mode="json")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "8080 -> backend-api:3000 (direct)"),
        ({"persistent": True}, "8080 -> backend-api:3000 (persistent, direct)"),
        ({"origin": "file"}, "8080 -> backend-api:3000 (file, direct)"),
        ({"origin": "file", "bind": "0.0.0.0"}, "0.0.0.0:8080 -> backend-api:3000 (file, direct)"),
        ({"origin": "file", "bind": "::"}, "[::]:8080 -> backend-api:3000 (file, direct)"),
        ({"state": "waiting", "mode": None, "reason": "gone"}, "8080 -> backend-api:3000 (waiting; gone)"),
        ({"state": "draining", "counters": COUNTED}, "8080 -> backend-api:3000 (direct, draining, 2 open)"),
        ({"reason": "refused"}, "8080 -> backend-api:3000 (direct; refused)"),
    ],
)
def test_lines_of_a_list(changed: dict[str, object], line: str) -> None:
    """Behind a forward stands what is particular about it; before its port the address, where it is not the usual one."""
    assert list(forwardtexts.listing(None, [entry(**changed)])) == ["Active port forwards:", f"  {line}"]


def test_empty_lists() -> None:
    """The documentation's own words, in a space and from the desktop."""
    assert list(forwardtexts.listing(None, [])) == ["No active port forwards."]
    assert list(forwardtexts.listing("frontend", [])) == ["No active port forwards in space 'frontend'."]


def test_wide_rows_have_a_cell_for_each_column() -> None:
    """The wide table names the origin, and shows a dash for what nobody knows."""
    for row in (entry(), entry(counters=COUNTED, origin="file", bind="0.0.0.0")):
        cells = dict(zip(forwardtexts.WIDE, forwardtexts.wide_row(row), strict=True))
        assert cells["ORIGIN"] == row["origin"]
        assert all(cells.values())
    assert (cells["PORT"], cells["OPEN"], cells["SENT"], cells["UP SINCE"]) == ("0.0.0.0:8080", "2", "1.5 kB", "-")


def applied(made: list[tuple[int, str, int, bool]], stopped: list[tuple[int, str, int, bool]]) -> dict[str, Any]:
    def entries(tuples: list[tuple[int, str, int, bool]]) -> list[AppliedForward]:
        return [
            AppliedForward.model_validate({"local_port": a, "space": b, "remote_port": c, "persistent": d})
            for a, b, c, d in tuples
        ]

    return Applied(applied=entries(made), stopped=entries(stopped), errors=[]).model_dump(mode="json")


def test_plan_is_a_diff() -> None:
    """By port: what goes, what comes, and both lines for a change."""
    standing = [entry(), entry(local_port=7070), entry(local_port=9090, space="old-service", remote_port=8080)]
    plan = applied([(7070, "backend-api", 3000, True), (8081, "backend-api", 3000, True)], [(9090, "old-service", 8080, False)])
    assert list(forwardtexts.plan(standing, plan)) == [
        "- 7070 -> backend-api:3000",
        "+ 7070 -> backend-api:3000 (persistent)",
        "+ 8081 -> backend-api:3000 (persistent)",
        "- 9090 -> old-service:8080",
    ]


def test_plan_without_what_is_not_replaced() -> None:
    """A forward that drains, is the file's, or is the same but was not bound, is nothing that goes."""
    plan = applied([(8080, "backend-api", 3000, False)], [])
    for standing in (entry(state="draining", space="other"), entry(origin="file", space="other"), entry(state="failed")):
        assert list(forwardtexts.plan([standing], plan)) == ["+ 8080 -> backend-api:3000"]

"""What `ssh-audit` says of a hub and an endpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knot_keys.connections import POST_QUANTUM
from knot_ssh.addresses import Address
from tests.conftest import Pair
from tests.support.configured import ConfiguredAgent
from tests.support.figures import Figure
from tests.support.system import running_system

AUDIT = Path(sys.executable).with_name("ssh-audit")
SECONDS = 60
KINDS = ("kex", "key", "enc", "mac")
STRICT = "kex-strict-s-v00@openssh.com"
"""Offers strict key exchange, which is what Terrapin (CVE-2023-48795) fails at."""
NOT_POST_QUANTUM = "does not provide protection against post-quantum attacks"
LEFT = {(name, NOT_POST_QUANTUM) for name in ("curve25519-sha256", "curve25519-sha256@libssh.org")}
"""What it warns of: OpenSSH before 9.9 and paramiko before 5 have nothing better in common with us."""


def endpoint(pair: Pair) -> tuple[str, int]:
    return pair.backend.endpoint()


def hub(pair: Pair) -> tuple[str, int]:
    address = Address.parse(pair.system.hub)
    return address.host, address.port


def audited(host: str, port: int) -> dict[str, Any]:
    """Its report; the exit code says no more than that."""
    command = [str(AUDIT), "--json", "--port", str(port), host]
    report: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).stdout)
    return report


def said(report: dict[str, Any], level: str) -> set[tuple[str, str]]:
    """What it notes of algorithms at this level, with the algorithm's name."""
    return {(found["algorithm"], note) for kind in KINDS for found in report[kind] for note in found["notes"].get(level, ())}


@pytest.mark.threat(12, "ssh-audit asks for every algorithm", "no [fail], no [warn] but for old clients, strict key exchange")
@pytest.mark.parametrize("where", [hub, endpoint], ids=lambda where: where.__name__)
def test_no_weak_algorithm(pair: Pair, figure: Figure, where: Callable[[Pair], tuple[str, int]]) -> None:
    """Nothing that is offered is broken or weak; post-quantum key exchange comes first where the library has it."""
    report = audited(*where(pair))
    failures, warnings = said(report, "fail"), said(report, "warn")
    figure(f"{len(failures)} failures, {len(warnings - LEFT)} warnings, and {len(warnings & LEFT)} for curve25519 alone")
    assert failures == set()
    assert warnings <= LEFT
    assert report["cves"] == []
    offered = [found["algorithm"] for found in report["kex"]]
    assert STRICT in offered
    assert offered[: len(POST_QUANTUM)] == POST_QUANTUM


@pytest.mark.skipif(not POST_QUANTUM, reason="the library below has no post-quantum key exchange")
@pytest.mark.threat(12, "ssh-audit, where post-quantum key exchange alone is let in", "no [fail], no [warn]")
def test_nothing_to_warn_of(tmp_path: Path, figure: Figure) -> None:
    """With `post_quantum_only` at both ends there is nothing left to warn of, and agents work."""
    with running_system(tmp_path, "--post-quantum-only") as system:
        agent = ConfiguredAgent(system, "careful", "alice", {"post_quantum_only": True}, tmp_path)
        agent.start()
        address = Address.parse(system.hub)
        for host, port in (agent.endpoint(), (address.host, address.port)):
            report = audited(host, port)
            assert said(report, "fail") | said(report, "warn") == set()
            assert [found["algorithm"] for found in report["kex"] if not found["algorithm"].startswith(("ext-", "kex-"))]
    figure("0 failures, 0 warnings at either end")

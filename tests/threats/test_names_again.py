"""Names that are given out again: an owner who was deleted, and another one of the same name."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import load_key
from knot_server.store.database import STORE_FILE
from knot_ssh.errors import NameTaken
from tests.conftest import Pair
from tests.support.figures import Figure
from tests.support.rawhub import RawHub
from tests.support.rawssh import Denied, RawSSH


@pytest.mark.threat(
    22, "the certificate of an owner who was deleted and made again", "name held back; refused even if it were not"
)
def test_owner_made_again(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """While a certificate of the old owner is good the name is not given out; where it is, the certificate is void."""
    system = pair.system
    before = system.space("box", "dora")
    key, certificate = (Path(shutil.copy(path, tmp_path)) for path in before.identity())
    admin = system.api("admin")
    admin.delete("api", "users", "dora")
    with pytest.raises(NameTaken, match="held back") as refused:
        admin.post("api", "users", body={"name": "dora"})
    with contextlib.closing(sqlite3.connect(system.folder / "server" / STORE_FILE)) as store, store:
        store.execute("UPDATE certificates SET expires_at = 1 WHERE owner = 'dora'")  # as if it were held back no more
    del system.tokens["dora"]
    again = system.space("box2", "dora")
    with pytest.raises(Denied):
        RawSSH.login(again.endpoint(), key)
    with pytest.raises(Denied):
        RawHub.enter(system, load_key(key), "knot", read_certificate(certificate.read_text()))
    RawSSH.login(again.endpoint(), again.identity()[0]).close()
    figure(f"{str(refused.value).rpartition(', ')[2]} held back; refused by endpoint and hub")

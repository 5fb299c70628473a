"""What is used up or void stays so, also where an older copy of the store is put back."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from knot_keys.certificates import LIFETIME
from knot_keys.keyfiles import fingerprint, public_line
from knot_server.roster import Roster
from knot_server.store.database import STORE_FILE, Database
from knot_server.store.journal import BACKUP_AGE, JOURNAL_FILE, Journal, VoidCertificate, VoidKey
from knot_server.store.schema import BarredKey
from knot_server.usecases.audit import Audit
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.revocation import Revocations
from knot_server.usecases.spaces import TOKEN_LIFETIME
from knot_ssh.errors import Conflict, JoinRefused, KnotError, LooseFile, StoreUnavailable
from tests.support.noroom import no_room
from tests.unit.knot_server.conftest import ALICE, World
from tests.unit.knot_server.test_enrolment import a_host_key, a_key

NOW = int(time.time())


def void(serial: int, until: int = NOW + 1000) -> VoidCertificate:
    return VoidCertificate(serial=serial, reason="x", until=until)


class Backup:
    """A copy of the store."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._copy = world.folder / "copy"
        with contextlib.closing(sqlite3.connect(world.folder / STORE_FILE)) as store:
            store.execute("VACUUM INTO ?", (str(self._copy),))

    @contextlib.asynccontextmanager
    async def put_back(self) -> AsyncIterator[None]:
        """Restart the server with it."""
        world = self._world
        await world.database.close()
        for beside in ("-wal", "-shm"):
            (world.folder / f"{STORE_FILE}{beside}").unlink(missing_ok=True)
        self._copy.chmod(0o600)
        self._copy.replace(world.folder / STORE_FILE)
        world.database = await Database.open(world.folder)
        world.revocations = Revocations(world.database, world.authority, Roster(), Audit(world.database), LIFETIME)
        await world.revocations.load()
        world.enrolment = Enrolment(world.database, world.authority, world.revocations, Audit(world.database))
        yield
        await world.database.close()


async def test_redeemed_token_stays_so(world: World) -> None:
    """A token that was redeemed since the copy serves no other key; the key that has it is enrolled, and may ask again."""
    space, token = await world.invited(ALICE, "backend")
    backup, key = Backup(world), a_key()
    first = await world.enrolment.redeem(token.id, key)
    async with backup.put_back():
        with pytest.raises(JoinRefused, match="used already"):
            await world.enrolment.redeem(token.id, a_key())
        assert await world.enrolment.enrolled_key(space.space_id) == key
        assert await world.enrolment.redeem(token.id, key) == first


async def test_uses_of_a_reusable_token_are_counted(world: World) -> None:
    """What was taken of a reusable token since the copy is not there again."""
    _, token = await world.invited(ALICE, "backend", reusable=True)
    backup = Backup(world)
    for _ in range(3):
        await world.enrolment.redeem(token.id, a_key())
    async with backup.put_back():
        assert world.sql("SELECT uses_left FROM join_tokens WHERE id = ?", token.id) == [(997,)]


async def test_replaced_key_stays_void(world: World) -> None:
    """A key that was enrolled when the copy was made, and was replaced since, is void, and so are its certificates."""
    space, token = await world.invited(ALICE, "backend")
    old, new = a_key(), a_key()
    await world.enrolment.redeem(token.id, old)
    await world.certified(space, old, a_host_key())
    other = await world.token(ALICE, space)
    backup = Backup(world)
    await world.enrolment.redeem(other.id, new)
    revoked = world.revocations.current
    async with backup.put_back():
        assert world.revocations.current == revoked
        assert revoked.has_key(old)
        assert await world.enrolment.enrolled_key(space.space_id) == new


async def test_deleted_space_that_comes_back_has_no_key(world: World) -> None:
    """A space that was deleted since the copy is there again, but nobody is its agent, also once the revocation has run out."""
    space, token = await world.invited(ALICE, "backend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    backup = Backup(world)
    await world.spaces.delete(ALICE, space.id)
    text = (world.folder / JOURNAL_FILE).read_text()
    (world.folder / JOURNAL_FILE).write_text(re.sub('"expires_at":[0-9]+', '"expires_at":1', text))
    async with backup.put_back():
        assert not world.revocations.current.has_key(key)
        assert await world.enrolment.space(space.space_id)
        assert await world.enrolment.enrolled_key(space.space_id) is None


async def test_key_that_is_enrolled_again(world: World) -> None:
    """A key that was void and is enrolled again, after its revocation ran out, stays enrolled over restarts."""
    space, token = await world.invited(ALICE, "backend")
    first, second = a_key(), a_key()
    await world.enrolment.redeem(token.id, first)
    await world.enrolment.redeem((await world.token(ALICE, space)).id, second)
    world.sql("UPDATE revoked_keys SET expires_at = 1")
    await world.revocations.load()
    await world.enrolment.redeem((await world.token(ALICE, space)).id, first)
    async with Backup(world).put_back():
        assert await world.enrolment.enrolled_key(space.space_id) == first


async def test_barred_key_stays_so(world: World) -> None:
    """A key that was barred since the copy is certified no more."""
    await world.space(ALICE, "backend")
    backup, key = Backup(world), a_key()
    async with world.database.writing() as session:
        session.add(BarredKey(owner=str(ALICE.owner), fingerprint=fingerprint(key), reason="lost"))
    async with backup.put_back():
        with pytest.raises(Conflict):
            await world.enrolment.certify_person(ALICE, public_line(key), None)


async def test_restart_changes_nothing(world: World) -> None:
    """A store that knows everything is left as it is."""
    space, token = await world.invited(ALICE, "backend")
    await world.enrolment.redeem(token.id, a_key())
    await world.enrolment.redeem((await world.token(ALICE, space)).id, a_key())
    tables = ("spaces", "join_tokens", "join_uses", "revoked_keys", "revoked_certificates")
    before = [world.sql(f"SELECT * FROM {table}") for table in tables]
    async with Backup(world).put_back():
        assert [world.sql(f"SELECT * FROM {table}") for table in tables] == before


async def test_nothing_is_done_that_cannot_be_kept(world: World) -> None:
    """Where the journal cannot be written a token is not redeemed, and serves later."""
    space, token = await world.invited(ALICE, "backend")
    with no_room(), pytest.raises(StoreUnavailable):
        await world.enrolment.redeem(token.id, a_key())
    assert await world.enrolment.enrolled_key(space.space_id) is None
    await world.enrolment.redeem(token.id, a_key())


async def test_kept_and_read(tmp_path: Path) -> None:
    """What was kept is there after a restart, in order, each once."""
    journal = Journal.open(tmp_path)
    await journal.keep([void(1), void(2)])
    await journal.keep([void(2), void(3)])
    assert Journal.open(tmp_path).entries == [void(1), void(2), void(3)] == journal.entries
    assert len((tmp_path / JOURNAL_FILE).read_text().splitlines()) == 3


async def test_what_has_run_out_is_dropped(tmp_path: Path) -> None:
    """At a start the file is rewritten without what nobody needs any more."""
    await Journal.open(tmp_path).keep([void(1, NOW - 1), void(2)])
    assert Journal.open(tmp_path).entries == [void(2)]
    assert len((tmp_path / JOURNAL_FILE).read_text().splitlines()) == 1


async def test_line_that_was_cut_short(tmp_path: Path) -> None:
    """What a crash left at the end of the file was told to nobody, and goes."""
    await Journal.open(tmp_path).keep([void(1)])
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(b'{"until":')
    await Journal.open(tmp_path).keep([void(2)])
    assert Journal.open(tmp_path).entries == [void(1), void(2)]


async def test_damage_is_no_beginning(tmp_path: Path) -> None:
    """A line that is none, before the last, stops the server, and says where it is."""
    await Journal.open(tmp_path).keep([void(1), void(2)])
    file = tmp_path / JOURNAL_FILE
    file.write_text(file.read_text().replace("certificate", "certainly", 1))
    with pytest.raises(KnotError, match="journal:1 is damaged"):
        Journal.open(tmp_path)


async def test_missing_journal_is_told_of(tmp_path: Path) -> None:
    """A store whose journal is gone works, and says once what is not promised any more."""
    with structlog.testing.capture_logs() as logs:
        Journal.open(tmp_path)
        Journal.open(tmp_path)
    assert [entry["event"] for entry in logs] == ["journal made anew"]


async def test_loose_journal_is_refused(tmp_path: Path) -> None:
    """Who could write to it could bring a key back."""
    Journal.open(tmp_path)
    (tmp_path / JOURNAL_FILE).chmod(0o666)
    with pytest.raises(LooseFile):
        Journal.open(tmp_path)


async def test_void_key_is_remembered_as_long_as_copies_are_kept(world: World) -> None:
    """An enrolled key's end is remembered for longer than its certificates are good."""
    space, token = await world.invited(ALICE, "backend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    await world.spaces.delete(ALICE, space.id)
    [kept] = [entry for entry in Journal.open(world.folder).entries if isinstance(entry, VoidKey)]
    assert kept.fingerprint == fingerprint(key)
    assert kept.until > NOW + BACKUP_AGE


async def test_void_join_token_stays_so(world: World) -> None:
    """A join token that was revoked since the copy enrols nobody, also a reusable one that had a month left."""
    space, token = await world.invited(ALICE, "backend", reusable=True)
    backup = Backup(world)
    await world.revoking.space(ALICE, space.id, "leaked")
    async with backup.put_back():
        with pytest.raises(JoinRefused, match="has expired"):
            await world.enrolment.redeem(token.id, a_key())


async def test_key_that_was_enrolled_again_stays_enrolled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key may be enrolled again, once its revocation has run out, and stays so when the token has run out as well: an
    sshd's registration key, for instance, which the script keeps."""
    space, token = await world.invited(ALICE, "backend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    await world.revoking.space(ALICE, space.id, "")
    world.sql("UPDATE revoked_keys SET expires_at = 1")
    await world.revocations.refresh()
    await world.enrolment.redeem((await world.token(ALICE, space)).id, key)
    await world.database.close()
    monkeypatch.setattr(time, "time", lambda: NOW + TOKEN_LIFETIME + 60.0)
    await (await Database.open(world.folder)).close()
    [(line,)] = world.sql("SELECT enrolled_key FROM spaces WHERE id = ?", space.id)
    assert line == public_line(key)

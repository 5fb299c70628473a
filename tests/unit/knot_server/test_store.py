"""The store: its tables are what the models say, its files are private, and a damaged one refuses to open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select

from knot_server.store.database import STORE_FILE, Database
from knot_server.store.journal import JOURNAL_FILE
from knot_server.store.schema import Base, Space, User
from knot_ssh.errors import KnotError, LooseFile, StoreUnavailable


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A new store."""
    opened = await Database.create(tmp_path)
    yield opened
    await opened.close()


def ann() -> User:
    return User(name="ann", admin=False, created_at=1)


async def users(database: Database) -> list[str]:
    """The names in the store."""
    async with database.reading() as session:
        return list(await session.scalars(select(User.name).order_by(User.name)))


def modes_in(folder: Path) -> dict[str, int]:
    """The permission bits of the files in a folder."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def refusal(folder: Path) -> str:
    """The one line with which the store refuses to open; no connection to it is left open."""
    with pytest.raises(KnotError) as caught:
        await (await Database.open(folder)).close()
    gc.collect()
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / STORE_FILE) in message
    return message


@pytest.mark.usefixtures("database")
def test_migrated_schema_is_the_models(tmp_path: Path) -> None:
    """The migrations, run one after the other, make exactly the tables that the models describe."""
    engine = create_engine(f"sqlite:///{tmp_path / STORE_FILE}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    engine.dispose()
    assert differences == []


@pytest.mark.usefixtures("database")
def test_a_difference_would_be_seen(tmp_path: Path) -> None:
    """The comparison above sees a column and an index that are missing."""
    engine = create_engine(f"sqlite:///{tmp_path / STORE_FILE}")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP INDEX ix_certificates_owner")
        connection.exec_driver_sql("ALTER TABLE users DROP COLUMN admin")
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    engine.dispose()
    assert len(differences) == 2


@pytest.mark.usefixtures("loose_umask")
async def test_files_are_private(tmp_path: Path) -> None:
    """The store, and the files that lie beside it, are 0600 under any umask."""
    database = await Database.create(tmp_path)
    async with database.writing() as session:
        session.add(ann())
    modes = modes_in(tmp_path)
    await database.close()
    assert modes == dict.fromkeys((STORE_FILE, f"{STORE_FILE}-wal", f"{STORE_FILE}-shm", JOURNAL_FILE), 0o600)


async def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    """What was committed is there when the store is opened again."""
    database = await Database.create(tmp_path)
    async with database.writing() as session:
        session.add(ann())
    await database.close()
    database = await Database.open(tmp_path)
    found = await users(database)
    await database.close()
    assert found == ["ann"]


async def test_created_once(tmp_path: Path, database: Database) -> None:
    """A store is never made over another."""
    async with database.writing() as session:
        session.add(ann())
    with pytest.raises(FileExistsError):
        await Database.create(tmp_path)
    assert await users(database) == ["ann"]


async def test_failure_leaves_nothing(database: Database) -> None:
    """A transaction that fails, for whatever reason, changes nothing."""

    async def fail() -> None:
        async with database.writing() as session:
            session.add(ann())
            await session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await users(database) == []


async def test_trouble_with_the_database_is_one_error(database: Database) -> None:
    """What the database complains of is that the store is unavailable; the reason is for the log."""
    with pytest.raises(StoreUnavailable, match=r"^the store did not answer; try again$") as caught:
        async with database.writing() as session:
            session.add_all([ann(), ann()])
    assert "UNIQUE" in caught.value.detail
    assert await users(database) == []


async def test_foreign_keys_hold(database: Database) -> None:
    """A space without its user cannot be stored."""
    with pytest.raises(StoreUnavailable):
        async with database.writing() as session:
            session.add(Space(id="x", name="x", owner="nobody", zone="eu", created_at=1))


async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    """While somebody writes, others read what was before."""
    async with database.writing() as session:
        session.add(ann())
        await session.flush()
        assert await users(database) == []
    assert await users(database) == ["ann"]


async def test_ping(database: Database) -> None:
    """A store that is open answers."""
    await database.ping()


async def test_cancelled_transactions_leave_no_lock(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that is cancelled, at whichever of its operations, has ended: the next one writes without waiting."""
    execute = aiosqlite.Connection._execute
    left = 0
    writer: asyncio.Task[None] | None = None

    async def counting(self: aiosqlite.Connection, *args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and writer:
            asyncio.get_running_loop().call_soon(writer.cancel)
        return await execute(self, *args, **options)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counting)
    await database.close()  # what is open counts nothing yet

    async def write(name: str) -> None:
        async with database.writing() as session:
            session.add(User(name=name, admin=False, created_at=1))
            await session.flush()
            assert await session.scalar(select(User.name).where(User.name == name)) == name

    for number in itertools.count(1):
        left = number
        writer = asyncio.ensure_future(write(f"user-{number}"))
        await asyncio.gather(writer, return_exceptions=True)
        done, left = left > 0, 0
        async with asyncio.timeout(1):
            await write(f"other-{number}")
        if done:
            break
    assert number > 5


async def test_missing_store_is_not_made(tmp_path: Path) -> None:
    """A store that was lost is an error with its path; opening makes no new one."""
    assert "No such file" in await refusal(tmp_path)
    assert modes_in(tmp_path) == {}


async def test_loose_store_is_refused(tmp_path: Path) -> None:
    """A store that others can read is refused."""
    await (await Database.create(tmp_path)).close()
    (tmp_path / STORE_FILE).chmod(0o644)
    with pytest.raises(LooseFile):
        await Database.open(tmp_path)


def overwrite(data: bytes) -> Callable[[Path], object]:
    """Damage: other contents."""
    return lambda path: path.write_bytes(data)


def truncate(path: Path) -> None:
    """Damage: the second half is missing."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    """Damage: one page within the file is something else."""
    data = bytearray(path.read_bytes())
    data[2 * 4096 : 3 * 4096] = b"\xa5" * 4096
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [overwrite(b""), overwrite(b"nonsense"), overwrite(b"\0" * 8192), overwrite(b"\xff" * 8192), truncate, scribble],
    ids=["empty", "short", "zeros", "garbage", "truncated", "page"],
)
async def test_damaged_store_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A damaged store refuses to open, in one line that names it, and is left as it is."""
    await (await Database.create(tmp_path)).close()
    path = tmp_path / STORE_FILE
    damage(path)
    before = path.read_bytes()
    await refusal(tmp_path)
    assert path.read_bytes() == before


async def test_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """A store that a later version has migrated refuses to open, in one line."""
    await (await Database.create(tmp_path)).close()
    with contextlib.closing(sqlite3.connect(tmp_path / STORE_FILE)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await refusal(tmp_path)


async def test_folder_with_odd_characters(tmp_path: Path) -> None:
    """The folder's name may hold what has a meaning in URLs."""
    folder = tmp_path / "a?b#c%20d e"
    folder.mkdir()
    await (await Database.create(folder)).close()
    assert set(modes_in(folder)) == {STORE_FILE, JOURNAL_FILE}
    assert (folder / STORE_FILE).stat().st_size > 0

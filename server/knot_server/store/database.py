"""Transactions on the store, through SQLAlchemy. SQLite in the server's data folder; another database is another URL.

Two kinds of transaction, so that SQLite never has to turn a reader into a writer (which fails under load): `reading`
and `writing`. Trouble with the database becomes `Unavailable` in this one place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from knot_server.store.catchingup import catch_up, entries, watch
from knot_server.store.journal import Journal
from knot_ssh.errors import KnotError, StoreUnavailable
from knot_ssh.files import create_private_file, read_secret

STORE_FILE = "store.db"
BUSY_SECONDS = 5
"""How long a transaction waits for another process that holds the file."""


class Database:
    """An open store."""

    def __init__(self, engine: AsyncEngine, journal: Journal) -> None:
        self._engine = engine
        self._journal = journal

    @classmethod
    async def create(cls, folder: Path) -> Database:
        """Make a new store file and its journal, 0600, and the tables; raises FileExistsError where there is one."""
        create_private_file(folder / STORE_FILE, b"")
        Journal.create(folder)
        return await cls._migrated(folder / STORE_FILE)

    @classmethod
    async def open(cls, folder: Path) -> Database:
        """Open the store and bring its tables up to date; raises KnotError when it is missing, loose or damaged."""
        file = folder / STORE_FILE
        if not read_secret(file):
            raise KnotError(f"the store {file} is empty: put a copy of it back, it is never made anew over an old one")
        return await cls._migrated(file)

    @classmethod
    async def _migrated(cls, file: Path) -> Database:
        journal = Journal.open(file.parent)
        engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(file)))
        _teach_sqlite(engine)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(_check)
                await connection.run_sync(_migrate)
                await connection.commit()
            async with AsyncSession(engine) as session:
                await catch_up(session, journal.entries)
                await session.commit()
        except (SQLAlchemyError, CommandError) as error:
            await engine.dispose()
            raise KnotError(f"the store {file} cannot be used: {_reason(error)}; put a copy of it back") from None
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, journal)

    @property
    def kind(self) -> str:
        """The database's name, `sqlite` or another."""
        return self._engine.dialect.name

    async def close(self) -> None:
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction that changes nothing."""
        async with self._session(write=False) as session:
            yield session

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed at the end, or not at all; what must last is in the journal before."""
        async with self._session(write=True) as session:
            lasting = watch(session)
            yield session
            await session.flush()
            await self._journal.keep(await entries(session, lasting))
            await session.commit()

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        async with self.reading() as session:
            await session.execute(text("SELECT 1"))

    @contextlib.asynccontextmanager
    async def _session(self, *, write: bool) -> AsyncIterator[AsyncSession]:
        try:
            async with AsyncSession(self._engine, expire_on_commit=False) as session:
                await session.connection(execution_options={"write": write})
                yield session
        except SQLAlchemyError as error:
            raise StoreUnavailable(detail=_reason(error)) from error


def _check(connection: Connection) -> None:
    """Raise DatabaseError when SQLite finds the file damaged."""
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise DatabaseError("quick_check", None, ValueError(f"it is damaged ({found})"))


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _teach_sqlite(engine: AsyncEngine) -> None:
    """Foreign keys on, a write-ahead log, and locks that are taken when a transaction starts."""

    @event.listens_for(engine.sync_engine, "connect")
    def _opened(connection: Any, _record: object) -> None:
        _finish_operations(connection.driver_connection)
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        for setting in ("foreign_keys = ON", "journal_mode = WAL", f"busy_timeout = {BUSY_SECONDS * 1000}"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _finish_operations(driver: Any) -> None:
    """Have who is cancelled wait for the operation that this connection's thread is at, and take the transaction back.

    The pool closes a connection whose user was cancelled, but SQLite keeps one with an unfinished statement open, and the file
    locked, until a garbage collection comes by.
    """
    execute = driver._execute

    async def to_the_end(*args: Any, **options: Any) -> Any:
        try:
            return await execute(*args, **options)
        except asyncio.CancelledError:
            await _wait_for(asyncio.ensure_future(driver.rollback()))  # the thread takes one after the other
            raise

    driver._execute = to_the_end


async def _wait_for(operation: asyncio.Future[Any]) -> None:
    """Until it is done, however often we are cancelled; whatever comes of it."""
    while not operation.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([operation])
    if not operation.cancelled():
        operation.exception()  # nobody else asks for it


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]

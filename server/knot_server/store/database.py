"""Transactions on the store, through SQLAlchemy. SQLite in the server's data folder; another database is another URL.

Two kinds of transaction, so that SQLite never has to turn a reader into a writer (which fails under load): `reading`
and `writing`. Trouble with the database becomes `Unavailable` in this one place.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from knot_ssh.errors import KnotError, Unavailable
from knot_ssh.files import create_private_file, read_secret

STORE_FILE = "store.db"
BUSY_SECONDS = 5
"""How long a transaction waits for another process that holds the file."""


class StoreUnavailable(Unavailable):
    """The store did not answer; try again."""

    code = "store_unavailable"


class Database:
    """An open store."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    async def create(cls, folder: Path) -> Database:
        """Make a new store file, 0600, and its tables; raises FileExistsError where there is one."""
        create_private_file(folder / STORE_FILE, b"")
        return await cls._migrated(folder / STORE_FILE)

    @classmethod
    async def open(cls, folder: Path) -> Database:
        """Open the store and bring its tables up to date; raises KnotError when it is missing, loose or damaged."""
        read_secret(folder / STORE_FILE)
        return await cls._migrated(folder / STORE_FILE)

    @classmethod
    async def _migrated(cls, file: Path) -> Database:
        engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
        _teach_sqlite(engine)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(_migrate)
                await connection.commit()
        except SQLAlchemyError as error:
            await engine.dispose()
            raise KnotError(f"the store {file} cannot be used: {_reason(error)}") from None
        return cls(engine)

    async def close(self) -> None:
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction that changes nothing."""
        async with self._session(write=False) as session:
            yield session

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed at the end, or not at all."""
        async with self._session(write=True) as session:
            yield session
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


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _teach_sqlite(engine: AsyncEngine) -> None:
    """Foreign keys on, a write-ahead log, and locks that are taken when a transaction starts."""

    @event.listens_for(engine.sync_engine, "connect")
    def _opened(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        for setting in ("foreign_keys = ON", "journal_mode = WAL", f"busy_timeout = {BUSY_SECONDS * 1000}"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]

"""What the store holds, in numbers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import func, select

from knot_server.store.database import Database
from knot_server.store.schema import Certificate, RevokedCertificate, RevokedKey, Space, StoredForward, User


@dataclass(frozen=True, slots=True)
class Inventory:
    """Rows of each kind; `certificates` are those that have not expired."""

    users: int
    spaces: int
    persistent_forwards: int
    certificates: int
    revocations: int


async def take_inventory(database: Database) -> Inventory:
    """Count what is there; raises StoreUnavailable."""
    valid = select(func.count()).where(Certificate.expires_at > int(time.time()))
    tables = [select(func.count()).select_from(table) for table in (User, Space, StoredForward)]
    revoked = [select(func.count()).select_from(table) for table in (RevokedCertificate, RevokedKey)]
    async with database.reading() as session:
        users, spaces, forwards, certificates, *voids = [
            int(await session.scalar(question) or 0) for question in (*tables, valid, *revoked)
        ]
    return Inventory(users, spaces, forwards, certificates, sum(voids))

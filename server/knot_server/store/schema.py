"""The tables. Times are whole seconds since 1970 (UTC); ids and names are the checked values of `knot_ssh.names`.

A change here needs a migration beside it in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Integer, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone


class Base(DeclarativeBase):
    """The root that migrations compare with."""


class User(Base):
    __tablename__ = "users"

    name: Mapped[str] = mapped_column(primary_key=True)
    admin: Mapped[bool]
    created_at: Mapped[int] = mapped_column(BigInteger)


class ApiToken(Base):
    """A bearer token of the HTTP API: a public id to find it by, and a hash of its secret."""

    __tablename__ = "api_tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    secret_hash: Mapped[str]
    user_name: Mapped[str] = mapped_column(ForeignKey("users.name", ondelete="CASCADE"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(default="", server_default="")
    """What its user calls it."""
    scope: Mapped[str] = mapped_column(default="all", server_default="all")
    space_id: Mapped[str | None] = mapped_column(ForeignKey("spaces.id", ondelete="CASCADE", name="fk_api_tokens_space_id"))
    """The one space that its scope is about, if it is about one."""
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    last_used: Mapped[int | None] = mapped_column(BigInteger)
    user: Mapped[User] = relationship(lazy="joined")
    space: Mapped[Space | None] = relationship(lazy="joined")


class Space(Base):
    __tablename__ = "spaces"
    __table_args__ = (UniqueConstraint("owner", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner: Mapped[str] = mapped_column(ForeignKey("users.name", ondelete="CASCADE"))
    zone: Mapped[str]
    created_at: Mapped[int] = mapped_column(BigInteger)
    last_seen: Mapped[int | None] = mapped_column(BigInteger)
    enrolled_key: Mapped[str | None]
    host_key: Mapped[str | None]
    host_key_next: Mapped[str | None]
    host_key_old: Mapped[str | None]
    """What the host key is to be, and what it was: at most one of them, while it is changed for another."""
    agentless: Mapped[bool] = mapped_column(default=False, server_default=false())
    """An ordinary sshd has joined as this space, and no agent since."""
    trusts: Mapped[str] = mapped_column(default="", server_default="")
    """Fingerprints of the CAs that its agent has said it trusts, with spaces between."""

    @property
    def space_id(self) -> SpaceId:
        return SpaceId(self.id)

    @property
    def space_name(self) -> SpaceName:
        return SpaceName(self.name)

    @property
    def host_keys(self) -> list[str]:
        """The host key, and the one that it will be or was."""
        return [key for key in (self.host_key, self.host_key_next, self.host_key_old) if key]

    @property
    def principal(self) -> Principal:
        return Principal(Owner(self.owner), Zone(self.zone))


class JoinToken(Base):
    __tablename__ = "join_tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    secret_hash: Mapped[str]
    space_id: Mapped[str] = mapped_column(ForeignKey("spaces.id", ondelete="CASCADE"))
    uses_left: Mapped[int]
    expires_at: Mapped[int] = mapped_column(BigInteger)
    host_cas: Mapped[str] = mapped_column(default="", server_default="")
    """Fingerprints of the host CAs that the token names, with spaces between."""


class JoinUse(Base):
    """A key that joined with a token: the same key may ask again and gets the same answer."""

    __tablename__ = "join_uses"

    token_id: Mapped[str] = mapped_column(ForeignKey("join_tokens.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)


class Certificate(Base):
    """Every certificate that is still good, or expired lately; see `revocation`. No foreign keys: it outlives its space."""

    __tablename__ = "certificates"

    serial: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    fingerprint: Mapped[str] = mapped_column(index=True)
    key_id: Mapped[str]
    owner: Mapped[str] = mapped_column(index=True)
    space_id: Mapped[str | None] = mapped_column(index=True)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
    ca: Mapped[str] = mapped_column(default="", server_default="")
    """Fingerprint of the CA that signed it."""
    issued_at: Mapped[int | None] = mapped_column(BigInteger)


class RevokedCertificate(Base):
    """A certificate that is void before its time, kept until it has expired."""

    __tablename__ = "revoked_certificates"

    serial: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    reason: Mapped[str]
    expires_at: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str] = mapped_column(default="", server_default="")
    key_id: Mapped[str] = mapped_column(default="", server_default="")
    frees_name: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Its space was deleted: the name may be given out again at once."""


class RevokedKey(Base):
    """An enrolled key that is one no more, kept until every certificate for it has expired."""

    __tablename__ = "revoked_keys"

    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    expires_at: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str] = mapped_column(default="", server_default="")


class BarredKey(Base):
    """A key that is certified no more for this owner, for good. For one owner alone: public keys are public, and whoever has
    seen one must not be able to make it void for others."""

    __tablename__ = "barred_keys"

    owner: Mapped[str] = mapped_column(ForeignKey("users.name", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]


class StoredForward(Base):
    """A persistent forward. The target is an id and no foreign key: a deleted target is reported, not forgotten."""

    __tablename__ = "forwards"

    space_id: Mapped[str] = mapped_column(ForeignKey("spaces.id", ondelete="CASCADE"), primary_key=True)
    local_port: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    target_id: Mapped[str]
    target_name: Mapped[str]
    remote_port: Mapped[int]
    made: Mapped[str] = mapped_column(server_default="")
    """A new word each time that it is made: by this an agent that has stopped it can tell which one it means."""


class AuditRecord(Base):
    """One line of the audit record: only ever added, and dropped when it is old."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True)
    at: Mapped[int] = mapped_column(BigInteger, index=True)
    """Milliseconds since 1970 (UTC)."""
    event: Mapped[str] = mapped_column(index=True)
    actor: Mapped[str]
    owner: Mapped[str | None] = mapped_column(index=True)
    space_id: Mapped[str | None] = mapped_column(index=True)
    fields: Mapped[str]
    """A JSON object: what else there is to say of it."""

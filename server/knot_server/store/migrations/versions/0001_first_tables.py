"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("user_name", sa.String(), sa.ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "spaces",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), sa.ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.BigInteger()),
        sa.Column("enrolled_key", sa.String()),
        sa.Column("host_key", sa.String()),
        sa.UniqueConstraint("owner", "name"),
    )
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("space_id", sa.String(), sa.ForeignKey("spaces.id", ondelete="CASCADE"), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "join_uses",
        sa.Column("token_id", sa.String(), sa.ForeignKey("join_tokens.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(), primary_key=True),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("space_id", sa.String()),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
    )
    for column in ("fingerprint", "owner", "space_id", "expires_at"):
        op.create_index(f"ix_certificates_{column}", "certificates", [column])
    op.create_table(
        "revoked_certificates",
        sa.Column("serial", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "revoked_keys",
        sa.Column("fingerprint", sa.String(), primary_key=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "forwards",
        sa.Column("space_id", sa.String(), sa.ForeignKey("spaces.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("local_port", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("target_id", sa.String(), nullable=False),
        sa.Column("target_name", sa.String(), nullable=False),
        sa.Column("remote_port", sa.Integer(), nullable=False),
    )

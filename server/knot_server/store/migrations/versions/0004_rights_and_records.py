"""What tokens may do, which CA signed what and who trusts it, and the audit record."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("api_tokens") as table:
        table.add_column(sa.Column("name", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("scope", sa.String(), nullable=False, server_default="all"))
        table.add_column(sa.Column("space_id", sa.String(), nullable=True))
        table.add_column(sa.Column("expires_at", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("last_used", sa.BigInteger(), nullable=True))
        table.create_foreign_key("fk_api_tokens_space_id", "spaces", ["space_id"], ["id"], ondelete="CASCADE")
    op.add_column("join_tokens", sa.Column("host_cas", sa.String(), nullable=False, server_default=""))
    op.add_column("certificates", sa.Column("ca", sa.String(), nullable=False, server_default=""))
    op.add_column("certificates", sa.Column("issued_at", sa.BigInteger(), nullable=True))
    op.add_column("spaces", sa.Column("trusts", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("space_id", sa.String(), nullable=True),
        sa.Column("fields", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    for column in ("at", "event", "owner", "space_id"):
        op.create_index(f"ix_audit_{column}", "audit", [column])

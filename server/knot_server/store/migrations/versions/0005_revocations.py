"""Whose what is revoked is, what it frees, and keys that are certified no more."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("revoked_certificates", sa.Column("owner", sa.String(), nullable=False, server_default=""))
    op.add_column("revoked_certificates", sa.Column("key_id", sa.String(), nullable=False, server_default=""))
    op.add_column("revoked_certificates", sa.Column("frees_name", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("revoked_keys", sa.Column("owner", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "barred_keys",
        sa.Column("owner", sa.String(), sa.ForeignKey("users.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(), primary_key=True),
        sa.Column("reason", sa.String(), nullable=False),
    )

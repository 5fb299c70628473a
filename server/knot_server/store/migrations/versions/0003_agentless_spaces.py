"""Spaces that an ordinary sshd serves, without an agent."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("spaces", sa.Column("agentless", sa.Boolean(), nullable=False, server_default=sa.false()))

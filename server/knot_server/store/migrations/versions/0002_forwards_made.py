"""Which making of a forward is stored."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("forwards", sa.Column("made", sa.String(), nullable=False, server_default=""))

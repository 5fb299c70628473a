"""What a space's host key is to be, or was, while it is changed for another."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("spaces", sa.Column("host_key_next", sa.String(), nullable=True))
    op.add_column("spaces", sa.Column("host_key_old", sa.String(), nullable=True))

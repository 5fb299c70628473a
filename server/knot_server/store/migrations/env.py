"""Alembic's entry: runs the migrations on the connection that the server hands in."""

from alembic import context

from knot_server.store.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()

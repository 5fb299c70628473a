"""What the server remembers: the schema, its migrations, and transactions."""

"""The server: SSH certificate authority, hub, HTTP API and store, in one process."""

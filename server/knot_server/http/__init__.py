"""The HTTP API, for the desktop, scripts and browsers."""

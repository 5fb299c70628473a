"""What the server does for users and agents, whichever door they come through."""

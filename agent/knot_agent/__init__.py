"""The agent: the process in a space that serves its endpoint and holds its forwards."""

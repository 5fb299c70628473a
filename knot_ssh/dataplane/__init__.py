"""The path that forwarded bytes take between a local TCP socket and an SSH channel."""

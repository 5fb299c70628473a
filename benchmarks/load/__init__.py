"""The tools that make load: service, clients, idle connections, SSH logins, the long line. Each runs as its own process.

They must cost less than what they measure, so they move bulk without copying it (`sendfile` from memory,
`recv(MSG_TRUNC)`), use plain blocking sockets, and import next to nothing.
"""

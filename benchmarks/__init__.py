"""Compare this project's data path with OpenSSH and others, on one machine, over loopback. Start at README.md."""

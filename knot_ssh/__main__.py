"""`python -m knot_ssh` is the `knot` command."""

from knot_ssh.cli.main import main

main()

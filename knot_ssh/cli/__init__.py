"""The `knot` command. Each module imports what its own command needs, and no more: `knot port list` starts fast."""

"""What both ends share: words and values, errors, messages, the data path, and the `knot` command."""

__version__ = "0.1.0"

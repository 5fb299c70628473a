"""Fuzzing of everything that parses what a stranger sends; `docs/fuzzing.md` tells how to run it, and how to keep a finding."""

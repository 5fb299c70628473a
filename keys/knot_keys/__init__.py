"""The SSH certificate authority, and everything that makes, reads or checks a certificate."""

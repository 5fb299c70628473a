"""What a person needs to use stock OpenSSH: a key with a certificate, whom to trust, and how to reach each space."""

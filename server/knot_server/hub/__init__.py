"""The server's SSH side: who may enter under which login name, joining, and the control links of agents."""

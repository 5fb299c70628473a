"""A fleet of agents at one server: what each costs it, and how they all come back after a restart."""

"""The processes behind a pool: the nursery that forks them, a worker in it and seen from outside, the wire."""

"""The search: its space, its strategies, the loop, and the choice of the best candidate."""

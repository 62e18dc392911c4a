"""Searches: the space, the strategies, the loop, and the choice of the winner."""

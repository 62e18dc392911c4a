"""Execution of evaluations on many processes: Ray actors, the pool, the coordinator that drives jobs."""

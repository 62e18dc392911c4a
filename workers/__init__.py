"""Execution of evaluations on many processes; nothing yet."""

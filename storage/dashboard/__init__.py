"""Candidates as Optuna trials, in tables that Optuna's dashboard reads."""

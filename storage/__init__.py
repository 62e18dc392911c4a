"""Records of jobs and evaluations in SQLite or PostgreSQL, and their projection into Optuna's tables."""

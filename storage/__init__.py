"""Records of jobs and evaluations in a database; nothing yet."""

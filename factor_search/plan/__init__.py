"""Progressive extension: stages that hand on models and factors, from a first search to a model with a long window."""

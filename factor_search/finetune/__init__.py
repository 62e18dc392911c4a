"""Training a model with given factors in force, so that it learns the extended window."""

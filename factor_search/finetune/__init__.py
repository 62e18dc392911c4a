"""Trains a model with given factors, so that it learns the extended context window."""

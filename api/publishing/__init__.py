"""Publishes the results of a search as a folder for the hub, and measures the figures of such a folder again."""

"""Builds reports: the JSON document, its HTML page and plots, and the folder of results."""

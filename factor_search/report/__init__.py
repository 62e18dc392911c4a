"""Reports: the JSON document, its page and plots, and the folder of results."""

"""A campaign of random faults against a whole service; see ``python -m bench.faults --help``."""

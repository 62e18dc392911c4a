"""Files: where caches are, written whole or not at all, JSON read with errors that say what to do."""

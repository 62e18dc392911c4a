"""The doors: command line, and later REST, web page and client."""

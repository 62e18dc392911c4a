"""The interfaces: REST, dashboard, command line and Python client."""

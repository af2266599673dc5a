"""Worker manager: which sandboxes of its leased workers are starting, idle, busy or draining."""

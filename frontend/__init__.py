"""Frontend: the public HTTP API, authentication, admission and the synchronous invoke."""

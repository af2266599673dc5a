"""One module per command of ``labda``: ``HELP``, ``arguments(parser)`` and ``run(options) -> exit status``."""

"""The command a person types, and the supervisor of the embedded cluster."""

__version__ = "0.1.0"

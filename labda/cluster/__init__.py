"""The cluster of containers: its trust, its files, its commands."""

"""Placement: the fleet, its registration and health, leases of whole workers, and where a new sandbox goes."""

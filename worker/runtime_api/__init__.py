"""The Lambda Runtime API, served to one sandbox through a listener made inside its network namespace."""

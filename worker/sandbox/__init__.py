"""Sandboxes: namespaces, cgroups, seccomp, and the privileged spawner behind one driver interface."""

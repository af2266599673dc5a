"""What the benchmarks measure with: a cluster as `labda up` starts it, the floor, the load, the reading of /proc."""

"""Simulation: the services' own code on a virtual clock, an in-memory network and a seeded source of randomness."""

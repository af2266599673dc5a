"""What the five services share and that has no domain words: driver, clock, channels, config, logs, certificates."""

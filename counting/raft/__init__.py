"""pysyncobj behind an interface of ours, with the guards that it needs."""

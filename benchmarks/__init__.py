"""Commands that measure labda and print ratios against a reference of the same run."""

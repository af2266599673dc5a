"""Counting: the region-wide, quorum-replicated ledger of concurrency permits."""

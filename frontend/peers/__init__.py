"""The frontend's typed outbound calls: the ledger, the managers, the workers."""

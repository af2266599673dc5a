"""Faults of storage: what went wrong at the store, and whether the work certainly did not happen.

Owns the typed errors that every implementation raises. Refuses to know which implementation raised them and
what an outer protocol makes of them.
"""


from chassis.faults import Fault, FaultCode


class StorageFault(Fault):
    """A fault from the world of storage."""

    definite = True


class Conflict(StorageFault):
    """A compare-and-swap found another revision than expected. Nothing was written."""

    code = FaultCode.CONFLICT

    def __init__(self, key: str, expected: int, found: int) -> None:
        super().__init__(
            f"{key} is at revision {found}, not {expected} as expected (0: it does not exist): "
            "read it again and decide anew"
        )
        self.key = key
        self.expected = expected
        self.found = found


class WatchGap(StorageFault):
    """Changes that this watch should have shown are gone from the log: list again, then watch from there."""

    code = FaultCode.CONFLICT

    def __init__(self, after: int, oldest: int, newest: int) -> None:
        super().__init__(
            f"a watch after revision {after} is not possible: the log holds changes after {oldest} up to "
            f"{newest}; list again and watch after the listing's revision"
        )
        self.after = after
        self.oldest = oldest
        self.newest = newest


class OutcomeUnknown(StorageFault):
    """A write began and its end was not seen: it may have happened or not. Read again before acting."""

    code = FaultCode.TIMEOUT
    definite = False

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"whether {key} was written is unknown ({why}): read it again before acting")
        self.key = key


class StoreUnavailable(StorageFault):
    """The store could not be reached or did not begin the work in time. Nothing was written."""

    code = FaultCode.UNAVAILABLE


class StoreFull(StoreUnavailable):
    """There is no room on the store's disk. Nothing was written; what is there can still be read."""

    code = FaultCode.EXHAUSTED

    def __init__(self, path: str, what: str, remedy: str = "free some space there, or take a larger disk") -> None:
        super().__init__(f"the disk of {path} is full, {what} was not written: {remedy}")


class StoreDenied(StorageFault):
    """The store doesn't let this process's certificate do that. Nothing was written."""

    code = FaultCode.DENIED

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"the store refuses {what} to this process's certificate ({why}): its common name says which service it "
            "is, and founding says what that service may touch"
        )


class StoreClosed(StorageFault):
    """The store was closed by this process before the work began. Nothing was written."""

    code = FaultCode.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("the store is closed: open it again")


class NewerSchema(StorageFault):
    """The file was written by a newer version of this program."""

    code = FaultCode.INTERNAL

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(
            f"{path} has schema version {found} and this program knows versions up to {known}: "
            "use the newer program, or another state directory"
        )
        self.found = found
        self.known = known


class StaleLease(StorageFault):
    """A lease or leadership was offered under a number that is not above the fence, or is another holder's.
    """

    code = FaultCode.CONFLICT

    def __init__(self, subject: str, offered: int, highest: int, why: str) -> None:
        super().__init__(
            f"number {offered} for {subject} is refused, the highest given so far is {highest}: {why}"
        )
        self.subject = subject
        self.offered = offered
        self.highest = highest


class BlobMissing(StorageFault):
    """No blob of this digest is in the store."""

    code = FaultCode.NOT_FOUND

    def __init__(self, sha256: str) -> None:
        super().__init__(f"blob {sha256} is not in the store")
        self.sha256 = sha256


class BlobCorrupt(StorageFault):
    """The stored bytes do not have the digest they are named by: put the blob again."""

    code = FaultCode.INTERNAL

    def __init__(self, sha256: str, found: str) -> None:
        super().__init__(f"blob {sha256} is corrupt, its bytes have the digest {found}: put it again")
        self.sha256 = sha256
        self.found = found


class CipherFault(StorageFault):
    """A key file is unusable, or a sealed value does not open. The text says which and what to do."""

    code = FaultCode.INTERNAL

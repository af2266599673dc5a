"""docs/counting.md shows what the code does: its example is what these commands come to, its diagram the table's."""

from pathlib import Path

from counting import commands as c
from counting.ledger import Ledger
from counting.words import Incarnation, Session, reserved
from frontend.core import TRANSITIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "counting.md"
ACCOUNT = "000000000000"
F = reserved(ACCOUNT, "f")
ONE, TWO = Session(frontend="frontend-1", epoch=1), Session(frontend="frontend-2", epoch=1)
WORKER = Incarnation(host="host-1", nonce=7)
RUN = c.Run(pool=F, function="f", invocation="i-1", incarnation=WORKER)


def wish(session: Session, waiting: int) -> c.Acquire:
    return c.Acquire(wishes=(c.Wish(session=session, pool=F, generation=1, waiting=waiting, spare=0),))


STEPS: tuple[tuple[str, tuple[c.Command, ...]], ...] = (
    ("`f` gets a reservation of 3; two frontends and a worker are there", (
        c.SetReserved(account=ACCOUNT, function="f", value=3), c.JoinWorker(incarnation=WORKER, timeout_cap_s=900.0),
        c.OpenSession(frontend="frontend-1", nonce=1), c.OpenSession(frontend="frontend-2", nonce=2),
    )),
    ("two requests wait at frontend-1", (wish(ONE, 2),)),
    ("two wait at frontend-2: one gets a permit, the other waits on", (wish(TWO, 2),)),
    ("a run ends at frontend-1, which was recalled and gives it back", (
        c.GiveBack(session=ONE, sequence=1, pool=F, count=1),
    )),
    ("the request that waits gets it", (wish(TWO, 1),)),
    ("frontend-2 is silent for 3 s: fenced, and charged whole", (c.MarkDraining(session=TWO),)),
    ("every worker reported; of its block one invocation runs", (c.CountBlocks(session=TWO, runs=(RUN,)),)),
    ("a worker says that this one ended", (
        c.EndOfInvocation(session=TWO, pool=F, invocation="i-1", incarnation=WORKER),
    )),
)


def table() -> str:
    ledger = Ledger()
    rows = ["| what happens | charged | free | frontend-1 | frontend-2 |", "|---|---|---|---|---|"]
    for number, (what, commands) in enumerate(STEPS, start=1):
        ledger.apply(c.Batch(stamp=float(number), number=number, commands=commands))
        ledger.check()
        rows.append(f"| {what} | {ledger.charge(F)} | {ledger.free(F)} | {held(ledger, ONE)} | {held(ledger, TWO)} |")
    return "\n".join(rows)


def held(ledger: Ledger, session: Session) -> str:
    record = ledger.sessions.get(session)
    block = record.blocks.get(F) if record is not None else None
    if record is None or block is None:
        return "0"
    return str(block.size) if ledger.is_live(session) else f"{block.size}, {record.state.name.lower()}"


def test_the_example_is_what_the_ledger_does():
    assert table() in PAGE.read_text()


def test_the_diagram_is_the_table_of_the_code():
    assert TRANSITIONS.mermaid() in PAGE.read_text()

"""pysyncobj's node with its defects guarded against: one override per defect, with the defect in its docstring.

Each guard was measured to be needed and has a test that fails without it (tests/counting/test_raft.py switches it
off by ``without``); when a release mends a defect, its guard goes. Overrides of private methods carry pysyncobj's
mangled names: that is why another release refuses to start (ambient.py). Numbers follow the list of known defects,
Raft's sections the paper (Ongaro and Ousterhout, extended version).
Refuses to know streams, timers (member.py) and what commands mean.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pysyncobj.config import SyncObjConf
from pysyncobj.node import Node
from pysyncobj.syncobj import _COMMAND_TYPE, _RAFT_STATE, SyncObj

from counting.raft.codec import Message
from counting.raft.dump import Chunk, Dumps, Snapshot
from counting.raft.framing import DamagedFileError
from counting.raft.group import Group, Groups, entry_of
from counting.raft.journal import Entry, Journal
from counting.raft.patience import election_least_s, fallback_s

COMMAND_BYTES_MAX = 1024 * 1024
_BATCH_BYTES = 4 * 1024 * 1024  # above any command, so that pysyncobj never cuts an entry in (pickled) pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftTiming:
    """Seconds. A new leader serves within about a second: a silent leader is given up after at most
    `election_max_s`."""

    heartbeat_s: float = 0.2
    election_min_s: float = 0.65
    election_max_s: float = 1.0
    compact_entries: int = 5_000
    compact_s: float = 3_600.0

    def __post_init__(self) -> None:
        assert election_least_s(self.heartbeat_s) < self.election_min_s < self.election_max_s, self

    @property
    def fallback_s(self) -> float:
        """A leader that no majority answers for this long stops leading (defect 7)."""
        return fallback_s(self.election_min_s)

    def conf(self, journal: Journal, dump_path: str) -> SyncObjConf:
        return SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,  # entries go out when the member says so, not one by one (member.py)
            appendEntriesPeriod=self.heartbeat_s,
            appendEntriesBatchSizeBytes=_BATCH_BYTES,
            raftMinTimeout=self.election_min_s,
            raftMaxTimeout=self.election_max_s,
            connectionTimeout=self.election_max_s,
            leaderFallbackTimeout=self.fallback_s,
            logCompactionMinEntries=self.compact_entries,
            logCompactionMinTime=self.compact_s,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            useFork=False,               # defect 8: threads of gRPC don't survive a fork
            journalFile=journal,         # defect 4: never one without the other
            fullDumpFile=dump_path,
        )


class Transport:
    """What pysyncobj sends through. Answers leave only when what they speak of is synced (defect 5)."""

    ready = True

    def __init__(self, send: Callable[[str, Message], bool], journal: Journal, without: frozenset[int]) -> None:
        self._send = send
        self._journal = journal
        self._without = without
        self.on_message: Callable[[Node, Message], None] | None = None
        self.on_connected: Callable[[Node], None] | None = None
        self.on_disconnected: Callable[[Node], None] | None = None

    def send(self, node: Node, message: Message) -> bool:
        if message["type"] != "append_entries" and 5 not in self._without:
            self._journal.sync()
        return self._send(node.id, message)

    def setOnMessageReceivedCallback(self, callback: Any) -> None:  # noqa: N802 - pysyncobj's names
        self.on_message = callback

    def setOnNodeConnectedCallback(self, callback: Any) -> None:  # noqa: N802
        self.on_connected = callback

    def setOnNodeDisconnectedCallback(self, callback: Any) -> None:  # noqa: N802
        self.on_disconnected = callback

    def setOnReadonlyNodeConnectedCallback(self, callback: Any) -> None: ...  # noqa: N802

    def setOnReadonlyNodeDisconnectedCallback(self, callback: Any) -> None: ...  # noqa: N802

    def setOnUtilityMessageCallback(self, message: str, callback: Any) -> None: ...  # noqa: N802

    def tryGetReady(self) -> None: ...  # noqa: N802

    def destroy(self) -> None: ...


class Peer(Node):  # type: ignore[misc]  # pysyncobj has no types
    """A member's name. pysyncobj keeps them in sets, whose order must not hang on the process's hash seed: a simulated
    region sends in the same order in every process."""

    def __hash__(self) -> int:
        return zlib.crc32(self.id.encode())


class GuardedNode(SyncObj):  # type: ignore[misc]  # pysyncobj has no types
    """One Raft member over our transport, journal and dump. Driven by ``doTick(0)`` and the transport's callbacks."""

    def __init__(
        self,
        member: str,
        founders: Group,
        timing: RaftTiming,
        *,
        transport: Transport,
        journal: Journal,
        dumps: Dumps,
        dump_path: str,
        apply: Callable[[int, bytes], None],
        restore: Callable[[bytes], None],
        now: Callable[[], float],
        without: frozenset[int] = frozenset(),
    ) -> None:
        self._guard_apply = apply
        self._guard_restore = restore
        self._guard_now = now
        self._guard_without = without
        self._guard_dumps = dumps
        self._guard_journal = journal
        self._guard_heard = float("-inf")
        self._guard_pre_votes: set[str] = set()
        self._guard_pre_term = 0
        self._guard_votes: set[str] = set()
        self._guard_elect = False
        self._guard_groups = Groups(founders)
        self._guard_regrouped = founders
        super().__init__(
            Peer(member), [Peer(voter) for voter in founders.voters if voter != member],
            conf=timing.conf(journal, dump_path), transport=transport,
        )
        self._SyncObj__serializer = dumps
        self._SyncObj__needLoadDumpFile = False
        snapshot = dumps.read()
        if snapshot is not None:
            self._guard_restore_own(snapshot)
        elif journal[0][1] != 1:
            raise DamagedFileError(
                f"member {member} has a log that begins at {journal[0][1]} and no dump of what came before: "
                f"its state is lost, add a new member instead"
            )
        for command, index, _ in journal.entries():
            self._guard_groups.added(index, command)
        dumps.group_at = self._guard_groups.said_at
        self._guard_regroup()

    # ------------------------------------------------------------ defects 1, 2, 10: append_entries

    def _SyncObj__onMessageReceived(self, node: Node, message: Message) -> None:  # noqa: N802
        kind = message["type"]
        if kind == "append_entries" and not {1, 2} & self._guard_without:
            self._guard_append_entries(node, message)
        elif kind == "next_node_idx":
            self._guard_append_answer(node, message)
        elif kind == "pre_vote":
            self._guard_pre_vote(node, message)
        elif kind == "pre_vote_answer":
            self._guard_pre_vote_answer(node, message)
        elif kind == "response_vote":
            self._guard_vote_answer(node, message)
        elif kind == "hand_over":
            self._guard_take_hand_over(node, message)
        else:
            if kind == "append_entries":
                self._guard_heard = self._guard_now()
            super()._SyncObj__onMessageReceived(node, message)

    def _guard_append_entries(self, node: Node, message: Message) -> None:
        """Defects 1 and 2. As shipped, a message with a snapshot chunk skips log matching and still moves the
        commit index to the leader's; and any matching prefix truncates what follows it, although only a conflict
        may (5.3).

        Here the commit index never passes the last entry that this very message proved to match, and only the first
        entry of another term truncates. A leader of an older term is told of ours, so that it stops.
        """
        term = message["term"]
        if term < self._SyncObj__raftCurrentTerm:
            self._guard_answer(node, self._guard_last_index() + 1, success=False, reset=False)
            return
        if term > self._SyncObj__raftCurrentTerm:
            self._SyncObj__setCurrentTerm(term, None)
        self._guard_heard = self._guard_now()
        self._SyncObj__raftElectionDeadline = self._guard_heard + self._SyncObj__generateRaftTimeout()
        if self._getLeader() != node:
            self._SyncObj__onLeaderChanged()
        self._SyncObj__raftLeader: Node | None = node
        self._SyncObj__setState(_RAFT_STATE.FOLLOWER)
        self._SyncObj__leaderCommitIndex = message["commit_index"]
        if "prevLogIdx" in message:
            matched = self._guard_append(node, message["prevLogIdx"], message["prevLogTerm"], message["entries"])
        else:
            matched = self._guard_install(node, message["serialized"])
        if matched is not None:
            self._guard_commit(min(message["commit_index"], matched))

    def _guard_append(self, node: Node, previous: int, previous_term: int, entries: list[Entry]) -> int | None:
        """Adds what is new. Returns the last index proven equal to the leader's log, or None when it doesn't match."""
        journal = self._guard_journal
        first, last = journal[0][1], journal[-1][1]
        if previous > last or previous < first:
            self._guard_answer(node, last + 1, success=False, reset=True)
            return None
        if journal[previous - first][2] != previous_term:
            self._guard_answer(node, self._guard_back_off(previous), success=False, reset=True)
            return None
        for position, (_, index, term) in enumerate(entries):
            if index <= last and journal[index - first][2] == term:
                continue
            if index <= last:
                assert index > self._SyncObj__raftLastApplied, (
                    f"invariant 14: the leader's entry {index} of term {term} contradicts one that is applied here"
                )
                journal.deleteEntriesFrom(index - first)
                self._guard_groups.truncated(index)
            for entry in entries[position:]:
                journal.add(*entry)
                self._guard_groups.added(entry[1], entry[0])
            self._guard_regroup()
            break
        matched = entries[-1][1] if entries else previous
        self._guard_answer(node, matched + 1, success=True, reset=False)
        return matched

    def _guard_back_off(self, previous: int) -> int:
        """Defect 10. As shipped, a follower backs off by one entry per heartbeat. A whole term at once instead
        (5.3), and never below what is committed: that matches by itself."""
        if 10 in self._guard_without:
            return previous
        journal = self._guard_journal
        first = journal[0][1]
        term = journal[previous - first][2]
        floor = max(first, self._SyncObj__raftCommitIndex) + 1
        while previous > floor and journal[previous - 1 - first][2] == term:
            previous -= 1
        return max(previous, floor)

    def _guard_install(self, node: Node, chunk: Chunk | None) -> int | None:
        """Defect 1 again: a snapshot proves a match up to its own last entry and nothing beyond; one that is older than
        what is applied here changes nothing; one whose last entry is in our log keeps what follows it there (7)."""
        snapshot = self._guard_dumps.receive(chunk) if chunk is not None else None
        if snapshot is None:
            self._guard_answer(node, self._guard_last_index() + 1, success=False, reset=False)
            return None
        index = snapshot.last[1]
        if index > self._SyncObj__raftLastApplied:
            if self._guard_has(snapshot.last):
                self._guard_commit(index)
            else:
                self._guard_dumps.install(snapshot)
                self._guard_journal.replace([snapshot.before, snapshot.last])
                self._guard_take_over(snapshot)
                self._guard_regroup()
        self._guard_answer(node, index + 1, success=True, reset=False)
        return index

    def _guard_answer(self, node: Node, next_index: int, *, success: bool, reset: bool) -> None:
        self._SyncObj__transport.send(node, {
            "type": "next_node_idx", "next_node_idx": next_index, "success": success, "reset": reset,
            "term": self._SyncObj__raftCurrentTerm,
        })

    def _SyncObj__sendNextNodeIdx(  # noqa: N802
        self, node: Node, reset: bool = False, nextNodeIdx: int | None = None,  # noqa: N803 - pysyncobj's name
        success: bool = False,
    ) -> None:
        """pysyncobj's own answers (spoken only where guards 1 and 2 are off, in tests), with the term of defect 3."""
        self._guard_answer(node, nextNodeIdx or self._guard_last_index() + 1, success=success, reset=reset)

    # ------------------------------------------------------------ defect 3: answers carry a term

    def _guard_append_answer(self, node: Node, message: Message) -> None:
        """Defect 3. As shipped, ``next_node_idx`` carries no term: a delayed answer of an older term counts as
        progress in the new one. Ours do; older ones are dropped and a newer one ends our leadership."""
        term = message["term"]
        if node not in self._SyncObj__otherNodes:
            return      # it was a member when it was asked
        if 3 not in self._guard_without:
            if term > self._SyncObj__raftCurrentTerm:
                self._guard_step_down(term)
                return
            if term < self._SyncObj__raftCurrentTerm:
                return
        super()._SyncObj__onMessageReceived(node, message)
        if message["reset"] and self._SyncObj__raftState == _RAFT_STATE.LEADER:
            self._SyncObj__newAppendEntriesTime = 0.0  # what it lacks goes out with the next tick

    def _guard_step_down(self, term: int) -> None:
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(_RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None

    # ------------------------------------------------------------ defect 4: restart from dump and journal

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:  # noqa: N802, N803
        """Reached only where guard 1 is off (tests): pysyncobj's own install of a snapshot."""
        snapshot = self._guard_dumps.read()
        assert snapshot is not None, "a snapshot arrived and isn't there"
        self._guard_journal.replace([snapshot.before, snapshot.last])
        self._guard_take_over(snapshot)

    def _guard_restore_own(self, snapshot: Snapshot) -> None:
        """Defect 4. As shipped, a dump that is newer than the journal's head (a crash between dumping and cutting
        the log) throws the whole journal away, acknowledged entries included. Only what the dump holds is cut here."""
        journal = self._guard_journal
        first = journal[0][1]
        if self._guard_has(snapshot.last) and snapshot.before[1] >= first:
            journal.deleteEntriesTo(snapshot.before[1] - first)
        elif journal[-1][1] > snapshot.last[1]:
            raise DamagedFileError(
                f"the log continues after entry {snapshot.last[1]} of the dump but doesn't hold it: "
                f"this member's state is damaged, add a new member instead"
            )
        else:
            journal.replace([snapshot.before, snapshot.last])
        self._guard_take_over(snapshot)

    def _guard_take_over(self, snapshot: Snapshot) -> None:
        self._guard_groups.restored(snapshot.last[1], snapshot.group)
        self._guard_restore(snapshot.state)
        self._SyncObj__raftLastApplied = snapshot.last[1]
        self._guard_commit(snapshot.last[1])

    def _guard_commit(self, index: int) -> None:
        """The commit index only grows."""
        self._SyncObj__raftCommitIndex: int = max(index, int(self.raftCommitIndex))

    def _guard_has(self, entry: Entry) -> bool:
        journal = self._guard_journal
        first, last = journal[0][1], journal[-1][1]
        return first <= entry[1] <= last and journal[entry[1] - first][2] == entry[2]

    def _guard_last_index(self) -> int:
        last: int = self._guard_journal[-1][1]
        return last

    # ------------------------------------------------------------ defects 6 and 9: commands

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:  # noqa: N802
        """Defects 6 and 9. As shipped, a command is pickled and calls any replicated method by number; one that
        raises is tried again for ever and wedges every member. Ours are bytes for one total function; a bug in it
        ends the process."""
        if command[0] == _COMMAND_TYPE.REGULAR:
            self._guard_apply(self._SyncObj__raftLastApplied + 1, command[1:])

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:  # noqa: N802
        """Defect 9: membership commands are pickled in entries. Ours aren't, and pysyncobj hears nothing of them."""

    # ------------------------------------------------------------ who votes

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        """pysyncobj stands for election only then; somebody who isn't a voter never does."""
        return self._SyncObj__selfNode.id in self.group.voters and bool(super()._SyncObj__connectedToAnyone())

    def _guard_regroup(self) -> None:
        """pysyncobj's own notion of its peers follows the log."""
        if self._guard_regrouped is self.group:
            return
        self._guard_regrouped = self.group
        own, others = self._SyncObj__selfNode, self._SyncObj__otherNodes
        wanted = {Peer(voter) for voter in self.group.voters} - {own}
        for node in wanted - others:
            self._SyncObj__raftNextIndex[node] = self._guard_last_index() + 1
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__lastResponseTime[node] = self._guard_now()
        for node in others - wanted:
            self._guard_dumps.cancelTransmisstion(node)
        self._SyncObj__otherNodes: set[Node] = wanted

    @property
    def group(self) -> Group:
        """Who votes now."""
        return self._guard_groups.current

    def settled(self) -> bool:
        """Whether the entry that put the group into force is committed: the next change has to wait for that."""
        return self._guard_groups.index <= self.applied()

    def change(self, group: Group) -> None:
        """Puts another group into force here and sends it on, at first also to who isn't in it any more. ``leads`` and
        ``settled`` must hold, and this member stays. A leader that hasn't committed in its own term yet could find two
        changes of one group in two logs (thesis, 4.1 as corrected)."""
        assert self.leads() and self.settled(), "one change at a time, by a leader that has committed in its term"
        assert self._SyncObj__selfNode.id in group.voters, "a leader doesn't remove itself: it hands over first"
        assert len({*group.voters} ^ {*self.group.voters}) == 1, f"{group} is more than one member away"
        index, entry = self._guard_last_index() + 1, entry_of(group)
        self._guard_journal.add(entry, index, self._SyncObj__raftCurrentTerm)
        self._SyncObj__sendAppendEntries()
        self._guard_groups.added(index, entry)
        self._guard_regroup()
        self._SyncObj__sendAppendEntries()

    def matched(self) -> dict[str, int]:
        """The last entry that each other voter is known to have, as the leader knows it."""
        return {node.id: int(self._SyncObj__raftMatchIndex[node]) for node in self._SyncObj__otherNodes}

    def answered(self) -> dict[str, float]:
        """When each other voter answered last, as the leader knows it."""
        return {node.id: float(self._SyncObj__lastResponseTime[node]) for node in self._SyncObj__otherNodes}

    def hand_over(self) -> str:
        """Tells the follower that is furthest to stand for election; its id, "" when none is connected. It wins where
        nothing is proposed here before it is heard."""
        ready = [node for node in self._SyncObj__otherNodes if node in self._SyncObj__connectedNodes]
        if not ready or not self.is_leader():
            return ""
        heir = max(ready, key=lambda node: (self._SyncObj__raftMatchIndex[node], node.id))
        self._SyncObj__transport.send(heir, {"type": "hand_over", "term": self._SyncObj__raftCurrentTerm})
        return str(heir.id)

    def _guard_take_hand_over(self, node: Node, message: Message) -> None:
        """No pre-vote: the others still hear the leader, who wants it."""
        if message["term"] == self._SyncObj__raftCurrentTerm and node == self._SyncObj__raftLeader:
            self._guard_elect = True
            self._SyncObj__raftElectionDeadline = 0.0

    # ------------------------------------------------------------ defect 7: leaders that don't know it, votes that
    # disturb

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N802, N803
        """Defect 7. As shipped there is no PreVote: a deaf follower raises its term again and again and deposes
        every leader that hears it. An election begins here only when a majority says that it hears no leader either
        (thesis, 9.6).

        Defect 5: a leader counts itself, so its own entries are synced before it counts.
        """
        if 5 not in self._guard_without:
            self._guard_journal.sync()
        if self._guard_wants_election() and not self._guard_elect and 7 not in self._guard_without:
            self._guard_ask_pre_votes()
        self._guard_votes = {self._SyncObj__selfNode.id} if self._guard_wants_election() else self._guard_votes
        super()._onTick(0.0)
        self._guard_elect = False

    def _guard_wants_election(self) -> bool:
        late = self._SyncObj__raftElectionDeadline < self._guard_now()
        return bool(late and not self.is_leader() and self._SyncObj__connectedToAnyone())

    def _guard_ask_pre_votes(self) -> None:
        conf = self._SyncObj__conf
        # Asked again soon: peers may have heard the lost leader a little later than we did.
        span = self._SyncObj__generateRaftTimeout() - conf.raftMinTimeout + conf.appendEntriesPeriod
        self._SyncObj__raftElectionDeadline = self._guard_now() + span
        self._guard_pre_term = self._SyncObj__raftCurrentTerm + 1
        self._guard_pre_votes = {self._SyncObj__selfNode.id}
        for node in sorted(self._SyncObj__otherNodes, key=lambda node: str(node.id)):
            self._SyncObj__transport.send(node, {
                "type": "pre_vote", "term": self._guard_pre_term, "last_log_index": self._guard_last_index(),
                "last_log_term": self._guard_journal[-1][2],
            })
        self._guard_count_pre_votes()

    def _guard_pre_vote(self, node: Node, message: Message) -> None:
        """Whether it could win: its log is not behind ours, and no leader was heard here for the shortest timeout."""
        quiet = self._guard_now() - self._guard_heard >= self._SyncObj__conf.raftMinTimeout
        last = self._guard_journal[-1]
        current = (message["last_log_term"], message["last_log_index"]) >= (last[2], last[1])
        newer = message["term"] > self._SyncObj__raftCurrentTerm
        granted = quiet and current and newer and self._SyncObj__raftState != _RAFT_STATE.LEADER
        term = message["term"] if granted else self._SyncObj__raftCurrentTerm
        self._SyncObj__transport.send(node, {"type": "pre_vote_answer", "term": term, "granted": granted})

    def _guard_pre_vote_answer(self, node: Node, message: Message) -> None:
        if node not in self._SyncObj__otherNodes:
            return
        if not message["granted"]:
            if message["term"] > self._SyncObj__raftCurrentTerm:
                self._guard_step_down(message["term"])
            return
        if message["term"] == self._guard_pre_term == self._SyncObj__raftCurrentTerm + 1:
            self._guard_pre_votes.add(node.id)
            self._guard_count_pre_votes()

    def _guard_count_pre_votes(self) -> None:
        if len(self._guard_pre_votes) * 2 <= len(self._SyncObj__otherNodes) + 1:
            return
        if self._SyncObj__raftState == _RAFT_STATE.LEADER:
            return
        self._guard_pre_votes = set()
        self._guard_elect = True
        self._SyncObj__raftElectionDeadline = 0.0  # the next tick stands for election

    def _guard_vote_answer(self, node: Node, message: Message) -> None:
        """A vote counts once, however often its message comes (a stream made anew may repeat it)."""
        if node not in self._SyncObj__otherNodes:
            return      # it has no vote
        if message["term"] == self._SyncObj__raftCurrentTerm and node.id not in self._guard_votes:
            self._guard_votes.add(node.id)
            super()._SyncObj__onMessageReceived(node, message)

    # ------------------------------------------------------------ what the member asks and orders

    def leads(self) -> bool:
        """Whether this node is leader and its term's first entry is applied: then it has everything acknowledged
        before."""
        return (
            self._SyncObj__raftState == _RAFT_STATE.LEADER
            and self._SyncObj__noopIDx is not None
            and self._SyncObj__raftLastApplied >= self._SyncObj__noopIDx
        )

    def is_leader(self) -> bool:
        return bool(self._SyncObj__raftState == _RAFT_STATE.LEADER)

    def leader(self) -> str:
        node = self._SyncObj__raftLeader
        return node.id if node is not None else ""

    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    def applied(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    def committed(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    def propose(self, command: bytes) -> None:
        """Adds a command to the leader's log and sends it at once. ``is_leader`` must hold. Who calls has it synced."""
        assert len(command) <= COMMAND_BYTES_MAX, f"a command of {len(command)} bytes, at most {COMMAND_BYTES_MAX} fit"
        index = self._guard_last_index() + 1
        self._guard_journal.add(bytes((_COMMAND_TYPE.REGULAR,)) + command, index, self._SyncObj__raftCurrentTerm)
        self._SyncObj__sendAppendEntries()

    def wants_tick(self) -> bool:
        """Whether something waits for a tick: entries to apply, answers to count, an election to begin."""
        if self._SyncObj__raftCommitIndex > self._SyncObj__raftLastApplied or self._guard_elect:
            return True
        if self._SyncObj__raftState != _RAFT_STATE.LEADER:
            return False
        others = self._SyncObj__otherNodes
        matched = sorted([self._guard_last_index(), *(self._SyncObj__raftMatchIndex[node] for node in others)])
        answered = matched[len(others) // 2] > self._SyncObj__raftCommitIndex
        return bool(answered or self._SyncObj__newAppendEntriesTime == 0)

    def next_tick_at(self) -> float:
        """When time alone changes something: the next heartbeat, or the end of patience with the leader, or with those
        who don't answer it (defect 7: looked at with heartbeats alone, it would last longer by up to one of them)."""
        if self._SyncObj__raftState == _RAFT_STATE.LEADER:
            return min(float(self._SyncObj__newAppendEntriesTime), self._guard_leads_until())
        return float(self._SyncObj__raftElectionDeadline)

    def _guard_leads_until(self) -> float:
        """Unless somebody answers: then a majority, this node included, hasn't for too long."""
        others = self._SyncObj__otherNodes
        if not others:
            return float("inf")
        heard = sorted((self._SyncObj__lastResponseTime[node] for node in others), reverse=True)
        return float(heard[(len(others) - 1) // 2] + self._SyncObj__conf.leaderFallbackTimeout)

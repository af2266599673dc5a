"""pysyncobj's messages in our encoding: no byte from the wire reaches pickle (defect 9).

Only the messages that the guarded node speaks exist here. A message that names anything else can't be built from
the wire, so it can't be handled. Refuses to know what the messages do (guards.py).
"""

from typing import Any, assert_never

from protos import raft_pb2

Message = dict[str, Any]


def to_wire(message: Message) -> raft_pb2.RaftMessage:
    """A message of the guarded node. Raises KeyError for a kind that isn't spoken: that is a bug, not a peer's
    doing."""
    return _TO_WIRE[message["type"]](message)


def from_wire(wire: raft_pb2.RaftMessage) -> Message | None:
    """The inverse; None for a message that is empty or of a kind from a later release."""
    kind = wire.WhichOneof("message")
    match kind:
        case "append":
            return _append(wire.append)
        case "append_answer":
            answer = wire.append_answer
            return {
                "type": "next_node_idx", "next_node_idx": answer.next_index, "reset": answer.reset,
                "success": answer.success, "term": answer.term,
            }
        case "vote":
            vote = wire.vote
            return {
                "type": "request_vote", "term": vote.term, "last_log_index": vote.last_log_index,
                "last_log_term": vote.last_log_term,
            }
        case "vote_answer":
            return {"type": "response_vote", "term": wire.vote_answer.term}
        case "pre_vote":
            ask = wire.pre_vote
            return {
                "type": "pre_vote", "term": ask.term, "last_log_index": ask.last_log_index,
                "last_log_term": ask.last_log_term,
            }
        case "pre_vote_answer":
            return {
                "type": "pre_vote_answer", "term": wire.pre_vote_answer.term, "granted": wire.pre_vote_answer.granted
            }
        case "hand_over":
            return {"type": "hand_over", "term": wire.hand_over.term}
        case "introduction" | None:     # the former is for the links (service.py)
            return None
        case _:
            assert_never(kind)


def _append(wire: raft_pb2.RaftMessage.AppendEntries) -> Message:
    message: Message = {"type": "append_entries", "term": wire.term, "commit_index": wire.commit_index}
    if wire.HasField("prev_log_index"):
        message["prevLogIdx"] = wire.prev_log_index
        message["prevLogTerm"] = wire.prev_log_term
        message["entries"] = [(entry.command, entry.index, entry.term) for entry in wire.entries]
    else:
        snapshot = wire.snapshot
        whole = wire.HasField("snapshot")
        message["serialized"] = (snapshot.chunk, snapshot.first, snapshot.last) if whole else None
    return message


def _wire_hand_over(message: Message) -> raft_pb2.RaftMessage:
    return raft_pb2.RaftMessage(hand_over=raft_pb2.RaftMessage.HandOver(term=message["term"]))


def _wire_append(message: Message) -> raft_pb2.RaftMessage:
    assert "transmission" not in message, "an entry is larger than a batch: commands are bounded below that"
    append = raft_pb2.RaftMessage.AppendEntries(term=message["term"], commit_index=message["commit_index"])
    if message.get("prevLogIdx") is not None:
        append.prev_log_index = message["prevLogIdx"]
        append.prev_log_term = message["prevLogTerm"]
        append.entries.extend(
            raft_pb2.Entry(command=command, index=index, term=term) for command, index, term in message["entries"]
        )
    elif message.get("serialized"):
        chunk, first, last = message["serialized"]
        append.snapshot.CopyFrom(raft_pb2.Snapshot(chunk=chunk, first=first, last=last))
    return raft_pb2.RaftMessage(append=append)


def _wire_answer(message: Message) -> raft_pb2.RaftMessage:
    return raft_pb2.RaftMessage(append_answer=raft_pb2.RaftMessage.AppendEntriesAnswer(
        next_index=message["next_node_idx"], reset=message["reset"], success=message["success"], term=message["term"]
    ))


def _wire_vote(message: Message) -> raft_pb2.RaftMessage:
    return raft_pb2.RaftMessage(vote=raft_pb2.RaftMessage.VoteRequest(
        term=message["term"], last_log_index=message["last_log_index"], last_log_term=message["last_log_term"]
    ))


def _wire_vote_answer(message: Message) -> raft_pb2.RaftMessage:
    return raft_pb2.RaftMessage(vote_answer=raft_pb2.RaftMessage.VoteAnswer(term=message["term"]))


def _wire_pre_vote(message: Message) -> raft_pb2.RaftMessage:
    return raft_pb2.RaftMessage(pre_vote=raft_pb2.RaftMessage.PreVote(
        term=message["term"], last_log_index=message["last_log_index"], last_log_term=message["last_log_term"]
    ))


def _wire_pre_vote_answer(message: Message) -> raft_pb2.RaftMessage:
    return raft_pb2.RaftMessage(pre_vote_answer=raft_pb2.RaftMessage.PreVoteAnswer(
        term=message["term"], granted=message["granted"]
    ))


_TO_WIRE = {
    "append_entries": _wire_append,
    "next_node_idx": _wire_answer,
    "request_vote": _wire_vote,
    "response_vote": _wire_vote_answer,
    "pre_vote": _wire_pre_vote,
    "pre_vote_answer": _wire_pre_vote_answer,
    "hand_over": _wire_hand_over,
}

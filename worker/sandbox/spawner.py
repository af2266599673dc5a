"""The only privileged part of a worker: builds, limits and removes sandboxes for the unprivileged agent.

Owns the requests' validation and the loop. Single-threaded, standard library only, no tenant data: a path never comes
from the agent, it is composed here from ids that match a pattern. When the agent is gone (end of file on its socket),
or when it has had no authority for longer than any invocation may run (watchdog.py), every sandbox is destroyed and
the loop ends. Its process is spawner_process.py.

Requests, by "op": authority, runtimes, has_code, unpack (one descriptor: the archive), create, start, limit_cpu, kill,
destroy, close. Answers and news: wire.py.
"""

import contextlib
import os
import selectors
import shutil
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from worker.sandbox import birth, children, linux, living, unpack, wire
from worker.sandbox.agent_link import AgentGone, AgentLink
from worker.sandbox.cgroups import SandboxGroup
from worker.sandbox.host import Host, Runtime
from worker.sandbox.living import Living, Stage
from worker.sandbox.requests import Request, RequestRefused, parse
from worker.sandbox.watchdog import Watchdog

_REMOVE_RETRY_S, _REMOVE_GIVE_UP_S = 0.002, 10.0

_NO_BOOTSTRAP = "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"


class Spawner:
    """One worker's sandboxes. ``end_agent`` kills the agent, whatever state it is in."""

    def __init__(self, host: Host, channel: socket.socket, end_agent: Callable[[], None]) -> None:
        self._host = host
        self._selector = selectors.DefaultSelector()
        self._agent = AgentLink(channel, self._selector, self._serve)
        self._sandboxes: dict[str, Living] = {}
        self._dying: list[Living] = []          # process 1 is reaped; groups or loop device remain
        self._slots = list(range(host.config.sandboxes_max, 0, -1))
        self._unpacking: dict[str, list[int]] = {}     # SHA-256 -> requests that wait for it
        self._children = children.Children(self._selector)      # of the code cache
        self._leaving = False
        self._end_agent = end_agent
        self._watchdog = Watchdog(timeout_cap_s=host.config.timeout_cap_s)
        self._alarm = linux.Alarm()

    def run(self) -> None:
        """Serves until the agent is gone, then leaves nothing behind."""
        self._agent.open()
        self._selector.register(self._alarm.fd, selectors.EVENT_READ, self._on_alarm)
        try:
            while True:
                self._turn()
        except AgentGone:
            self._leave()

    def _turn(self) -> None:
        timeout = _REMOVE_RETRY_S if self._dying else None
        for key, mask in self._selector.select(timeout):
            key.data(mask)
        self._remove_dead()

    def _leave(self) -> None:
        self._agent.close()
        self._selector.unregister(self._alarm.fd)
        self._leaving = True
        self._children.kill_all()
        for sandbox in list(self._sandboxes.values()):
            self._end(sandbox)
        while self._sandboxes or self._children:
            self._turn()
        self._alarm.close()
        self._host.close()

    # ---- start authority

    def _do_authority(self, request: Request, _fds: list[int]) -> None:
        """No answer: the agent doesn't wait, and a renewal that is lost only ends sandboxes sooner."""
        self._watchdog.renew(request.until_ms / 1000, request.grace_ms / 1000, linux.boottime())
        due = self._watchdog.due
        if due is not None:
            self._alarm.set(due)

    def _on_alarm(self, _mask: int) -> None:
        self._alarm.clear()
        now = linux.boottime()
        if not self._watchdog.expired(now):
            return      # renewed while the alarm rang
        sys.stderr.write(
            f"spawner: no start authority for {now - self._watchdog.until:.1f} s, longer than any invocation may run: "
            f"destroying {len(self._sandboxes)} sandboxes and the agent\n"
        )
        self._end_agent()
        raise AgentGone

    # ---- the agent's requests

    def _serve(self, message: wire.Message, fds: list[int]) -> None:
        number = message.get("id")
        if not isinstance(number, int):
            raise AgentGone
        try:
            request = parse(message, len(fds))
            handler: Callable[[Request, list[int]], dict[str, Any] | None] = getattr(self, f"_do_{request.op}")
            answer = handler(request, fds)
        except RequestRefused as refusal:
            self._agent.refuse(number, refusal.fault, str(refusal))
        except OSError as error:
            self._agent.refuse(number, "host", str(error))
        else:
            if answer is not None:
                self._agent.say({"id": number, "ok": True, **answer})

    def _do_runtimes(self, _request: Request, _fds: list[int]) -> dict[str, Any]:
        return {"runtimes": sorted(self._host.runtimes)}

    def _do_has_code(self, request: Request, _fds: list[int]) -> dict[str, Any]:
        return {"size": self._host.cache.size_of(request.sha256)}

    def _do_unpack(self, request: Request, fds: list[int]) -> dict[str, Any] | None:
        size = self._host.cache.size_of(request.sha256)
        if size is not None:
            return {"size": size}
        waiting = self._unpacking.setdefault(request.sha256, [])
        waiting.append(request.id)
        if len(waiting) == 1:
            try:
                self._fork_unpack(request, fds[0])
            except OSError:
                del self._unpacking[request.sha256]
                raise
        return None

    def _do_create(self, request: Request, _fds: list[int]) -> None:
        host, runtime = self._host, self._host.runtimes.get(request.runtime)
        missing = self._watchdog.missing(linux.boottime())
        if missing:
            raise RequestRefused("authority", missing)
        if request.sandbox in self._sandboxes:
            raise RequestRefused("sandbox", f"sandbox {request.sandbox} exists already")
        if runtime is None:
            raise RequestRefused("sandbox", f"runtime {request.runtime} is not on this host")
        if host.cache.size_of(request.sha256) is None:
            raise RequestRefused("code missing", f"code {request.sha256} is not in the cache")
        if not self._slots:
            limit = host.config.sandboxes_max
            raise RequestRefused("sandbox", f"this worker holds its limit of {limit} sandboxes (sandboxes_max)")
        self._make(request, runtime)

    def _make(self, request: Request, runtime: Runtime) -> None:
        """Begins a sandbox. Raises OSError, and nothing of it is there."""
        host = self._host
        proc_files, template = host.proc_files(request.memory_mb), host.tmp_template(request.tmp_mb)
        with contextlib.ExitStack() as undo:
            slot = self._slots.pop()
            undo.callback(self._slots.append, slot)
            host_uid = host.config.uid_base + 2 * (slot - 1)
            group = host.cgroups.create(request.sandbox, request.memory_mb)
            undo.callback(group.remove)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                pid, pidfd = self._fork_born(group, birth.Birth(
                    mount_point=host.mount_point, root=runtime.root, code=host.cache.path_of(request.sha256),
                    proc_files=proc_files, tmp_template=template, tmp_directory=host.tmp_directory,
                    tmp_mb=request.tmp_mb, host_uid=host_uid, join_files=tuple(group.join_files),
                    run_file=group.run_file, run_directory=group.run_directory,
                    control=theirs.fileno(), filter=host.filter_fd, init=host.init_fd,
                ))
            undo.callback(children.end_now, pid, pidfd)
            ours.setblocking(False)
            sandbox = Living(
                sandbox=request.sandbox, slot=slot, host_uid=host_uid, code=request.sha256, command=runtime.command,
                group=group, control=ours, pid=pid, pidfd=pidfd, create_request=request.id,
            )
            self._selector.register(ours, selectors.EVENT_READ, lambda _: self._on_control(sandbox))
            undo.callback(self._selector.unregister, ours)
            self._selector.register(pidfd, selectors.EVENT_READ, lambda _: self._on_ended(sandbox))
            undo.pop_all()
        host.cache.hold(request.sha256)
        self._sandboxes[request.sandbox] = sandbox

    def _do_start(self, request: Request, _fds: list[int]) -> None:
        sandbox = self._ready(request)
        if sandbox.start_request is not None:
            raise RequestRefused("sandbox", f"sandbox {request.sandbox} is being started already")
        if sandbox.command:
            candidates, arguments = [sandbox.command[0]], [*sandbox.command, request.handler]
            wrapper = request.environment.get("AWS_LAMBDA_EXEC_WRAPPER")
            if wrapper:     # a shell's exec says 127 for a missing wrapper, as documented
                candidates, arguments = ["/bin/sh"], ["sh", "-c", 'exec "$0" "$@"', wrapper, *arguments]
        else:
            candidates, arguments = ["/var/task/bootstrap", "/opt/bootstrap"], ["bootstrap"]
        environment = [f"{name}={value}" for name, value in request.environment.items()]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(reader, False)
            sandbox.order_start(candidates, arguments, environment, writer)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        sandbox.start_request = request.id
        self._agent.say({"event": "output", "id": request.id}, [reader])

    def _do_limit_cpu(self, request: Request, _fds: list[int]) -> dict[str, Any]:
        self._ready(request).group.limit_cpu(boosted=request.boosted)
        return {}

    def _do_kill(self, request: Request, _fds: list[int]) -> None:
        sandbox = self._ready(request)
        sandbox.order_kill()
        sandbox.kill_requests.append(request.id)

    def _do_destroy(self, request: Request, _fds: list[int]) -> dict[str, Any] | None:
        sandbox = self._sandboxes.get(request.sandbox)
        if sandbox is None:
            return {}
        sandbox.destroy_requests.append(request.id)
        self._end(sandbox)
        return None

    def _do_close(self, _request: Request, _fds: list[int]) -> None:
        raise AgentGone

    def _ready(self, request: Request) -> Living:
        sandbox = self._sandboxes.get(request.sandbox)
        if sandbox is None or sandbox.stage is not Stage.READY:
            raise RequestRefused("gone", f"sandbox {request.sandbox} is not there (any more)")
        return sandbox

    # ---- what sandboxes do

    def _on_control(self, sandbox: Living) -> None:
        try:
            outcome = sandbox.receive()
        except (EOFError, OSError, wire.BadMessage) as error:
            self._end(sandbox, f"its process 1 ended or can't be heard: {error}")
            return
        match outcome:
            case living.Born():
                self._on_born(sandbox, outcome.listener)
            case living.Failed():
                self._end(sandbox, outcome.message)
            case living.Started():
                self._on_started(sandbox, outcome.errno)
            case living.Exited():
                self._agent.say({"event": "exited", "sandbox": sandbox.sandbox, "code": outcome.code,
                           "signal": outcome.signal, "oom": outcome.oom})
            case living.Emptied():
                self._agent.say({"id": sandbox.kill_requests.pop(0), "ok": True})

    def _on_born(self, sandbox: Living, listener: int) -> None:
        group, held = sandbox.group, [listener]
        try:
            for path, flags in ((group.freeze_file, os.O_WRONLY), (group.frozen_file, os.O_RDONLY),
                                (group.peak_file, os.O_RDONLY)):
                held.append(os.open(path, flags | os.O_CLOEXEC))
        except OSError as error:
            for fd in held:
                os.close(fd)
            self._end(sandbox, str(error))
            return
        number, sandbox.create_request = sandbox.create_request, None
        self._agent.say({"id": number, "ok": True, "freezer": self._host.cgroups.layout.freezer}, held)

    def _on_started(self, sandbox: Living, number: int) -> None:
        request, sandbox.start_request = sandbox.start_request, None
        if request is None:
            return
        if number == 0:
            self._agent.say({"id": request, "ok": True})
        elif sandbox.command:
            self._agent.refuse(request, "sandbox", f"the runtime process could not be started: {os.strerror(number)}")
        else:
            self._agent.refuse(request, "entrypoint", _NO_BOOTSTRAP)

    def _end(self, sandbox: Living, reason: str = "") -> None:
        """Begins the end of a sandbox. Once everything is gone a pending create is refused with `reason`, and an agent
        that asked for no end is told."""
        if sandbox.stage in {Stage.DYING, Stage.GONE}:
            return
        sandbox.end()
        self._selector.unregister(sandbox.control)
        sandbox.failure = reason

    def _on_ended(self, sandbox: Living) -> None:
        self._selector.unregister(sandbox.pidfd)
        self._end(sandbox, "its process 1 ended")
        sandbox.collect()
        # Not before: the kernel ends process 1 of a pid namespace last, and what the agent hears frees permits.
        if sandbox.failure and sandbox.create_request is None and not sandbox.destroy_requests:
            self._agent.say({"event": "gone", "sandbox": sandbox.sandbox, "message": sandbox.failure})
        sandbox.remove_deadline = time.monotonic() + _REMOVE_GIVE_UP_S
        self._dying.append(sandbox)

    def _remove_dead(self) -> None:
        for sandbox in list(self._dying):
            gone = sandbox.remove()
            if not gone and time.monotonic() < sandbox.remove_deadline:
                continue
            self._dying.remove(sandbox)
            sandbox.stage = Stage.GONE
            del self._sandboxes[sandbox.sandbox]
            self._host.cache.release(sandbox.code)
            if gone:
                self._slots.append(sandbox.slot)     # else its ids are not given out again
            leftover = "" if gone else f"sandbox {sandbox.sandbox}: groups or loop device remained"
            if sandbox.create_request is not None:
                self._agent.refuse(sandbox.create_request, "sandbox", sandbox.failure or "destroyed while it was made")
            for number in (*sandbox.kill_requests, *filter(None, [sandbox.start_request])):
                self._agent.refuse(number, "gone", f"sandbox {sandbox.sandbox} was destroyed")
            for number in sandbox.destroy_requests:
                if leftover:
                    self._agent.refuse(number, "leftover", leftover)
                else:
                    self._agent.say({"id": number, "ok": True})

    # ---- children

    def _fork_born(self, group: SandboxGroup, order: birth.Birth) -> tuple[int, int]:
        group.delegate(order.host_uid)
        # The lock as well: until it is a member of its groups, nothing else tells a successor that it lives.
        keep = (order.filter, order.init, self._host.lock)
        if not group.born_in:
            return children.fork(lambda: birth.run(order), witness=order.control, keep=keep)
        directory = os.open(group.born_in, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return children.fork(lambda: birth.run(order), witness=order.control, keep=keep, group=directory)
        finally:
            os.close(directory)

    def _fork_unpack(self, request: Request, source: int) -> None:
        host = self._host
        path = host.cache.begin(host.unpack_uid)

        def work(report: int) -> None:
            unpack.run(unpack.Unpacking(
                source=source, sha256=request.sha256, target=f"{path}/task", uid=host.unpack_uid,
                size_bytes_max=request.size_bytes_max, entries_max=request.entries_max, report=report,
                filter=host.filter, last_capability=host.last_capability,
            ))

        try:
            self._children.start(work, lambda reader: self._on_unpacked(request.sha256, path, reader), keep=[source])
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def _on_unpacked(self, sha256: str, path: str, reader: int) -> None:
        answer = unpack.read_report(reader)
        evicted = [path]
        try:
            if "size" in answer:
                evicted = self._host.cache.commit(path, sha256, answer["size"])
        except OSError as error:
            answer = {"failed": str(error)}
        for number in self._unpacking.pop(sha256):
            if "size" in answer:
                self._agent.say({"id": number, "ok": True, "size": answer["size"]})
            elif "refused" in answer:
                self._agent.refuse(number, "archive", answer["refused"], entry=answer["entry"])
            else:
                self._agent.refuse(number, "host", f"unpacking failed: {answer['failed']}")
        for directory in evicted:
            self._remove_tree(directory)

    def _remove_tree(self, directory: str) -> None:
        """Removes in a child: a big tree takes longer than a sandbox may wait. What stays, the next start sweeps."""
        if self._leaving:
            return
        try:
            self._children.start(lambda _: shutil.rmtree(directory, ignore_errors=True), lambda _: None)
        except OSError as error:
            sys.stderr.write(f"spawner: {directory} stays until the next start: {error}\n")

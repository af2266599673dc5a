"""``labda cluster up`` and ``down``: from a topology to a cluster that serves, and back to nothing.

Owns the order: files, images, the stores and what is founded in them, everything else; and the waiting, with progress
that one can see. Refuses to know how a container is described (``compose_file``) and what founding writes
(``trust``, ``storage.founding``). Every step may be repeated; what is there already is left as it is.
"""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from labda.api import Api
from labda.cluster import founding, node_files, scraping, shape, trust
from labda.cluster.engine import Engine, docker
from labda.commands.deploy import open_api
from labda.console import Console
from labda.refusal import Refusal, Status
from labda.region import Region, opened
from labda.target import ContainerState
from labda.version import VERSION

BUILT = ("labda", "etcd", "nats", "endpoint")   # images, but for Prometheus', which is built when it is asked for
RELOADS = {"endpoint": "USR2", scraping.NAME: "HUP"}
READY_S = 180.0
END_S = 15          # for what runs when everything ends; a rolling restart waits for it (shape.DRAIN_S)
LOOK_S = 0.3


class Cluster:
    """One cluster in containers, as an operator starts and ends it."""

    def __init__(self, state: ContainerState, console: Console, form: shape.Shape) -> None:
        self._state = state
        self._console = console
        self._shape = form
        self._engine = Engine(form, state.root)

    def up(self, topology: Path, *, build: bool = True) -> None:
        """Returns once everything serves. Raises Refusal."""
        self._engine.require()
        self.init(topology)
        if build:
            self.build()
        began = time.monotonic()
        self._reload()
        self._found_counting()
        stores = [name for kind in shape.STORES for name in self._shape.stores(kind)]
        self._compose("stores", "up", "--no-build", "--detach", *stores)
        asyncio.run(self._found_stores())
        self._compose("containers", "up", "--no-build", "--detach", "--remove-orphans")
        asyncio.run(self._ready())
        self._note_runtimes()
        count = len(self._engine.containers())
        topology_words = f"{len(self._shape.azs)} AZs, {len(self._shape.of('worker'))} workers, {count} containers"
        self._console.line(f"labda {VERSION}", topology_words, f"ready in {time.monotonic() - began:.1f} s")

    def init(self, topology: Path) -> trust.Made:
        """Files only. A kept topology stays the one that counts unless another is named."""
        stores = [name for kind in shape.STORES for name in self._shape.stores(kind)]
        made = trust.init(self._state.root, self._shape.members, stores)
        node_files.write(self._state.root, self._shape)
        scraping.write(self._state.root, self._shape)
        kept = self._state.root / "topology.toml"
        if not (kept.exists() and kept.samefile(topology)):
            kept.write_text(topology.read_text())
        self._engine.write()
        return made

    def build(self) -> None:
        """One image after the other: the first time takes minutes, a change of the source some seconds."""
        self._engine.require()
        first = [self._shape.of("counting")[0].node, self._shape.stores("etcd")[0], self._shape.stores("nats")[0]]
        self._compose("images", "build", *first, "endpoint")
        self._engine.forget_images(all_of_them=False)

    def roll(self, topology: Path, *, build: bool = True) -> None:
        """Every container anew, one AZ after the other: with new images, files and members. Raises Refusal.

        An AZ comes down as a whole, which the others are made to carry, and the next waits until all serve again.
        """
        self._engine.require()
        self.init(topology)
        if build:
            self.build()
        self._reload()
        self._found_counting()
        asyncio.run(self._found_stores())
        for az in self._shape.azs:
            nodes = [name for kind in shape.STORES for name in self._shape.stores(kind) if name == f"{kind}-{az}"]
            nodes += [member.node for member in self._shape.members if member.az == az]
            self._compose(az, "up", "--no-build", "--detach", "--no-deps", "--force-recreate", *nodes)
            asyncio.run(self._ready())
            self._await_healthy(nodes)
        self._compose("endpoint", "up", "--no-build", "--detach", "--no-deps", "--remove-orphans", "endpoint")
        asyncio.run(self._ready())

    def _await_healthy(self, nodes: list[str]) -> None:
        """By their own checks: stores say there whether they have caught up."""
        deadline = time.monotonic() + READY_S
        while ill := [node for node in nodes if not self._engine.is_healthy(node)]:
            self._console.live(f"waiting    for {', '.join(ill)}")
            if time.monotonic() > deadline:
                raise Refusal(f"after {READY_S:.0f} s {', '.join(ill)} aren't healthy: docker logs says why")
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """Nothing that is kept is lost: `up` goes on from here. What runs for longer than ``END_S`` is cut off."""
        self._compose("stopped", "--profile", "*", "stop", "--timeout", str(END_S))

    def down(self, *, forget: bool) -> None:
        """Removes containers, networks and volumes: all functions with them. ``forget``: keys, certificates and images
        too."""
        self._engine.write()
        self._compose("removed", "--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", str(END_S))
        for volume in self._engine.volumes():   # of members that were replaced: the file doesn't name them any more
            docker("volume", "rm", volume)
        (self._state.root / "counting.json").unlink(missing_ok=True)
        left = self._engine.left()
        if left:
            raise Refusal(f"the engine still has {', '.join(left)}: docker rm, docker network rm, docker volume rm")
        if forget:
            self._engine.forget_images(all_of_them=True)
            shutil.rmtree(self._state.root)
            self._console.line("removed", str(self._state.root))

    # ------------------------------------------------------------ steps

    def _compose(self, label: str, *words: str) -> None:
        began = time.monotonic()
        self._engine.compose(*words, live=self._live(label))
        self._console.line(label, " ".join(word for word in words if not word.startswith("-"))[:60],
                           f"{time.monotonic() - began:.1f} s")

    def _live(self, label: str) -> Callable[[float], None]:
        return lambda spent_s: self._console.live(f"{label:<10} {spent_s:.0f} s")

    def _found_counting(self) -> None:
        """A member's files are made once, on purpose: one that lost them must not vote."""
        names = sorted(member.node for member in self._shape.of("counting"))
        kept = self._state.read("counting.json") or {"members": names, "made": []}
        founders = kept.setdefault("founders", kept["members"])
        if len(kept["members"]) != len(names) or len(set(kept["members"]) - set(names)) > 1:
            raise Refusal(f"{self._state.root} has counting members {', '.join(kept['members'])}, not "
                          f"{', '.join(names)}: their number is that of the first start, and one is replaced at a time",
                          Status.USAGE)
        kept["members"] = names
        for name in names:
            if name not in kept["made"]:
                join = () if name in founders else ("--join",)      # it gets a vote by `labda counting add`
                self._engine.compose("run", "--rm", "--no-deps", "-T", name, "found", "counting", *join,
                                     live=self._live("founding"))
                kept["made"].append(name)
                self._state.write("counting.json", kept)

    async def _found_stores(self) -> None:
        began = time.monotonic()
        new = await founding.found(self._state, self._shape, READY_S, self._live("founding"))
        self._console.line("founded", f"users and streams of the stores, {len(new)} new tokens",
                           f"{time.monotonic() - began:.1f} s")

    async def _ready(self) -> None:
        wanted = {member.node for member in self._shape.members}
        deadline = time.monotonic() + READY_S
        api = open_api(self._state)
        placements = [f"{member.node}:{shape.GRPC}" for member in self._shape.of("placement")]
        async with opened(self._state, placements) as region:
            while missing := await self._missing(region, wanted, api):
                self._console.live(f"starting   {len(wanted) - len(missing)} of {len(wanted)} serve, "
                                   f"waiting for {', '.join(sorted(missing))}")
                if time.monotonic() > deadline:
                    raise Refusal(f"after {READY_S:.0f} s {', '.join(sorted(missing))} don't serve: "
                                  f"docker logs {self._shape.project}-{min(missing)} says why")
                await asyncio.sleep(LOOK_S)

    async def _missing(self, region: Region, wanted: set[str], api: Api) -> set[str]:
        serving = {node.node for node in region.nodes if node.health == "serving"}
        if wanted - serving:
            return wanted - serving
        try:
            await asyncio.to_thread(lambda: list(api.functions()))
        except Refusal:
            return {"endpoint"}
        return set()

    def _reload(self) -> None:
        """What runs already and can read its files again without an end: which nodes there are, whom to trust."""
        for container in self._engine.containers():
            if container.service in RELOADS and container.running:
                docker("kill", "--signal", RELOADS[container.service], container.id)

    def _note_runtimes(self) -> None:
        worker = self._shape.of("worker")[0].node
        listed = docker("exec", f"{self._shape.project}-{worker}", "ls", shape.RUNTIMES_DIR)
        self._state.write("runtimes.json", sorted(listed.split()))


def ask_to_forget(root: Path, answer: Callable[[str], str]) -> bool:
    """Whether the directory goes too, and the images: its root certificate and keys are the region's only ones."""
    asked = f"remove {root} too, with the region's root key, and the images? [y/N] "
    return answer(asked).strip().lower() in {"y", "yes"}

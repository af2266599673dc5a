"""The clock and the time bounds that a sandbox's life is held to. Values only."""

from dataclasses import dataclass

from chassis.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    clock: Clock
    init_s: float = 10.0            # on demand; section 4.1 of Lambda's lifecycle
    freeze_after_s: float = 0.02    # idle for this long: back-to-back invocations pay no freeze and thaw

    def init_limit_s(self, *, on_demand: bool, timeout_s: float) -> float:
        """Provisioned sandboxes may take longer: nobody waits for them."""
        return self.init_s if on_demand else min(900.0, max(130.0, timeout_s))

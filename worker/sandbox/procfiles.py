"""What /proc tells a sandbox about its machine: files that show the function's own size, and what is hidden.

Owns the texts and the list of masked names. Files are written once per memory size and bound over the kernel's.
"""

import os

from worker.sandbox.cgroups import MEMORY_MB_PER_VCPU

SHOWN = ("cpuinfo", "meminfo", "stat", "loadavg")

# Kept out of sight: what tells about the host or its other tenants, and what acts on the host.
MASKED_FILES = (
    "buddyinfo", "cmdline", "config.gz", "consoles", "crypto", "diskstats", "dma", "execdomains", "fb",
    "interrupts", "iomem", "ioports", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup",
    "kpagecount", "kpageflags", "latency_stats", "locks", "mdstat", "misc", "modules", "mtrr", "pagetypeinfo",
    "partitions", "sched_debug", "schedstat", "slabinfo", "softirqs", "swaps", "sysrq-trigger", "timer_list",
    "timer_stats", "vmallocinfo", "vmstat", "zoneinfo",
)
MASKED_DIRECTORIES = (
    "acpi", "asound", "bus", "driver", "dynamic_debug", "fs", "irq", "latency", "pressure", "scsi", "sysvipc", "tty",
)


def processors(memory_mb: int) -> int:
    """How many processors a function of this size sees: at least two, as on the real service."""
    return max(2, -(-memory_mb // MEMORY_MB_PER_VCPU))


def write_shown(directory: str, memory_mb: int) -> None:
    """Writes the SHOWN files for this size into `directory`, which it makes; does nothing if they are there."""
    if os.path.isdir(directory):
        return
    unfinished = f"{directory}.new"
    os.makedirs(unfinished, exist_ok=True)
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        first_processor = file.read().split("\n\n")[0]
    for name, text in render(first_processor, memory_mb).items():
        with open(f"{unfinished}/{name}", "w", encoding="ascii", errors="replace") as file:
            file.write(text)
    os.rename(unfinished, directory)


def render(first_processor: str, memory_mb: int) -> dict[str, str]:
    """The SHOWN files' texts, from the host's first block of /proc/cpuinfo."""
    count, total_kb = processors(memory_mb), memory_mb * 1024
    numbered = {"processor", "core id", "apicid", "initial apicid"}
    totals = {"siblings", "cpu cores"}
    blocks = []
    for number in range(count):
        lines = []
        for line in first_processor.splitlines():
            key = line.split(":")[0]
            name = key.strip()
            value = number if name in numbered else count if name in totals else None
            lines.append(line if value is None else f"{key}: {value}")
        blocks.append("\n".join(lines) + "\n\n")
    zeros = " ".join("0" * 9)
    return {
        "cpuinfo": "".join(blocks),
        "meminfo": "".join(
            f"{name + ':':<16}{kb:>8} kB\n"
            for name, kb in (
                ("MemTotal", total_kb), ("MemFree", total_kb), ("MemAvailable", total_kb), ("Buffers", 0),
                ("Cached", 0), ("SwapCached", 0), ("Active", 0), ("Inactive", 0), ("SwapTotal", 0), ("SwapFree", 0),
                ("Shmem", 0), ("Slab", 0), ("SReclaimable", 0), ("SUnreclaim", 0),
            )
        ),
        "stat": f"cpu  0 {zeros}\n" + "".join(f"cpu{n} 0 {zeros}\n" for n in range(count))
        + "intr 0\nctxt 0\nbtime 0\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0\n",
        "loadavg": "0.00 0.00 0.00 1/1 1\n",
    }

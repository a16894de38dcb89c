"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that the scheduler gives this process; all of the machine where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

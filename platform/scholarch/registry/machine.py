"""Load of this machine, under the names of MLflow's own system metrics (its page draws them apart)."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import psutil

_MEGABYTE = 1e6


class Sample(NamedTuple):
    """One reading: seconds since 1970, and numbers by name."""

    time: float
    values: dict[str, float]


class MachineSampler:
    """Takes a reading at most every `every` seconds and keeps the newest `at_most` that were not sent."""

    def __init__(self, folder: Path, every: float = 10.0, at_most: int = 8640) -> None:
        self.pending: deque[Sample] = deque(maxlen=at_most)
        self._folder, self._every = folder, every
        self._last = -float("inf")
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call only starts the interval
        self._process.cpu_percent()

    def sample(self) -> None:
        """Take a reading if it is time to."""
        if time.monotonic() - self._last < self._every:
            return
        self._last = time.monotonic()
        memory, disk = psutil.virtual_memory(), shutil.disk_usage(self._folder)
        network = psutil.net_io_counters()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_cpu_percentage": self._process.cpu_percent(),
            "system/process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
            "system/disk_usage_percentage": 100 * disk.used / disk.total,
            "system/disk_available_megabytes": disk.free / _MEGABYTE,
            **_accelerators(),
        }
        if network is not None:
            values["system/network_receive_megabytes"] = network.bytes_recv / _MEGABYTE
            values["system/network_transmit_megabytes"] = network.bytes_sent / _MEGABYTE
        self.pending.append(Sample(time.time(), values))


def _accelerators() -> dict[str, float]:
    # Only what the allocator of this process knows: asking the driver about a device that the
    # process does not use would make a context on it.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    used = {index: torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count())}
    return {
        f"system/gpu_{index}_memory_usage_megabytes": size / _MEGABYTE for index, size in used.items() if size
    }

"""What workers have done, as Ray metrics: each node's Prometheus endpoint shows them.

infra/grafana/hallmarks.json draws them. Ray puts `ray_` before each name, and `_total` behind counters.
"""

from __future__ import annotations

import threading
from dataclasses import asdict

from ray.util.metrics import Counter, Gauge

from pipeline.execute.work.pull import Counters

COUNTERS = {
    "bytes_pulled": "Bytes of weights that were read",
    "tiles_done": "Tiles whose result was put into the store",
    "tiles_failed": "Attempts at a tile that ended in an error",
    "pulling_seconds": "Seconds that tiles waited for their bytes, summed over tiles side by side",
    "computing_seconds": "Seconds that tiles were computed, summed over tiles side by side",
    "retries": "Requests that were retried",
    "rate_limited_seconds": "Seconds that hosts told workers to wait",
}
GAUGES = {"bytes_in_flight": "Bytes that were requested and have not arrived"}


class Metrics:
    """The metrics of one worker."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._counters = {
            name: Counter(f"hallmarks_{name}", description=text, tag_keys=("run",))
            for name, text in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(f"hallmarks_{name}", description=text, tag_keys=("run",))
            for name, text in GAUGES.items()
        }
        self._exported = asdict(Counters())
        self._lock = threading.Lock()

    def export(self, counters: Counters) -> None:
        """Tell Ray what has changed since the last call. Safe in threads."""
        with self._lock:
            now = asdict(counters)
            for name, counter in self._counters.items():
                if (more := now[name] - self._exported[name]) > 0:
                    counter.inc(more, tags=self._tags)
            for name, gauge in self._gauges.items():
                gauge.set(now[name], tags=self._tags)
            self._exported = now

"""`jobs.analyze` with one protection taken away: what tests/test_secrets.py must then find.

python -m tests.leaky LEAK [options of analyze]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def object_store() -> None:
    """URLs handed over through the object store."""
    import ray

    from pipeline.execute.work import urls

    answer = urls.UrlBroker.answer
    kept = []

    def put(self: Any, request: Any, reply: Callable[[Any], None]) -> None:
        def by_reference(found: Any) -> None:
            kept.append(ray.put(found))
            reply(kept[-1])

        answer(self, request, by_reference)

    urls.UrlBroker.answer = put


def environment() -> None:
    """The token among the variables that the job's workers get."""
    import ray

    init, token = ray.init, os.environ["HF_TOKEN"]
    ray.init = lambda *args, **options: init(
        *args, **options, runtime_env={"env_vars": {"HF_TOKEN": token}}
    )
    from pipeline.execute.ray import life

    life._SECRETS = ()


def quoted_errors() -> None:
    """An error that quotes the URL that failed."""
    from pipeline.transport import http

    def refuse(self: Any, response: Any) -> None:
        raise http.ReadError(f"{self._access.url}: HTTP {response.status}")

    http._Answer._refuse = refuse


if __name__ == "__main__":
    name = sys.argv.pop(1)
    from jobs.analyze import analyze
    from jobs.console import run

    globals()[name]()
    run(analyze)

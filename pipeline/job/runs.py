"""The runs that one read becomes, and the right to write them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.planning.plan import Plan
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease


@dataclass(frozen=True, slots=True)
class Runs:
    """One run for a single source; for several, a run of each source and one over all of them."""

    whole: Plan
    """Whose tiles are read."""
    alone: tuple[Plan, ...] = ()
    """What each source of a joint analysis is by itself: a part of the same read."""

    @classmethod
    def of(cls, plan: Plan) -> Runs:
        """Return the runs that a plan's read becomes."""
        return cls(plan, plan.alone())

    def __iter__(self) -> Iterator[Plan]:
        """Yield the plan of every run; the one over all sources is the last."""
        yield from self.alone
        yield self.whole


class Leases:
    """The right to write every run of one read."""

    def __init__(self, folder: Folder, runs: Runs) -> None:
        self._each = [Lease(folder, plan.run) for plan in runs]

    @contextlib.contextmanager
    def held(self) -> Iterator[Leases]:
        """Hold all of them.

        Raises:
            RunInUse: another driver holds one.
        """
        with contextlib.ExitStack() as held:
            for lease in self._each:
                lease.acquire()
                held.callback(lease.release)
            yield self

    @property
    def tokens(self) -> list[int]:
        """Their numbers, in the order of the runs."""
        return [lease.token for lease in self._each]

    def assure(self) -> None:
        """Check that none has been lost, as far as their last renewals know.

        Raises:
            LeaseLost: another driver has taken one over.
        """
        for lease in self._each:
            lease.assure()

    def check(self) -> None:
        """Check that none has been lost, by looking at the store now.

        Raises:
            LeaseLost: as `assure`.
            StoreUnusable: the store cannot be read.
        """
        for lease in self._each:
            lease.check()

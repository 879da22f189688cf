"""How fast work goes: measured over a while, once it goes as fast as it will."""

from types import TracebackType
from typing import Self

from tqdm import tqdm

ROUND = 8  # pieces of work whose rates are compared, to tell the warm-up from the rest
SETTLED = 1.1  # times the rate of the round before, above which work is still getting faster


class SettledRate:
    """The rate of work that is done in pieces, without its warm-up: memory not touched before, kernels not made yet.

    The warm-up lasts until a round of pieces is hardly faster than the one before, and no longer than the measurement.
    Shows a progress bar while it is entered.
    """

    def __init__(self, name: str, unit: str, seconds: float) -> None:
        """`name` says what is measured, in `unit` a second, over so many `seconds` behind the warm-up."""
        self.name, self.unit, self.seconds = name, unit, seconds
        self.is_settled = False
        self.amount, self.took = 0, 0.0  # of what counts
        self._warm: list[tuple[int, float]] = []

    def __enter__(self) -> Self:
        self._bar = tqdm(
            total=self.seconds, desc=f"{self.name}: warm-up", bar_format="{desc}: {n:.0f} of {total:.0f} s{postfix}"
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.close()

    def add(self, amount: int, took: float) -> bool:
        """Count a piece of work and the seconds that it took; whether enough has been measured."""
        if self.is_settled:
            self.amount, self.took = self.amount + amount, self.took + took
        else:
            self._warm.append((amount, took))
            self._settle()
        self._show()
        return self.is_settled and self.took >= self.seconds

    @property
    def value(self) -> float | None:
        """Units a second: behind the warm-up, or of all pieces where there were no more; None without any."""
        amount, took = (self.amount, self.took) if self.amount else _total(self._warm)
        return amount / max(took, 1e-9) if amount else None

    def _settle(self) -> None:
        rounds = len(self._warm) // ROUND
        if len(self._warm) % ROUND == 0 and rounds > 1:
            before, last = _total(self._warm[-2 * ROUND : -ROUND]), _total(self._warm[-ROUND:])
            if last[0] / last[1] <= SETTLED * before[0] / before[1]:
                self.is_settled = True
                self.amount, self.took = last
        if _total(self._warm)[1] >= self.seconds:
            self.is_settled = True

    def _show(self) -> None:
        if self.is_settled:
            self._bar.set_description_str(f"{self.name}: measured", refresh=False)
        self._bar.set_postfix_str(f"{self.value:,.0f} {self.unit}/s", refresh=False)
        self._bar.n = min(self.took if self.is_settled else _total(self._warm)[1], self.seconds)
        self._bar.refresh()


def _total(pieces: list[tuple[int, float]]) -> tuple[int, float]:
    return sum(amount for amount, _ in pieces), sum(took for _, took in pieces)

"""How much goes through the model at once: as the user says, or as much as makes it faster and fits."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

FIRST_TOKENS = 4096
MOST_TOKENS = 2**17
GAIN = 1.1
"""Growing goes on while twice the tokens make it this much faster."""
TRIALS = 2
"""Batches of one size that are timed; the faster one counts, since machines are shared."""


@dataclass
class BatchSize:
    """A fixed number of records, or a number of tokens that grows while that pays.

    Beside the time it changes rounding alone.
    """

    records: int | None = None
    """As the user says; None: by tokens."""
    tokens: int = FIRST_TOKENS
    _settled: bool = False
    _best: float = 0.0
    _rates: list[float] = field(default_factory=list)

    def learn(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens, padding included, took so long."""
        if self._settled or tokens < self.tokens / 2:
            return
        self._rates.append(tokens / seconds)
        if len(self._rates) < TRIALS:
            return
        rate = max(self._rates)
        self._rates.clear()
        if rate >= GAIN * self._best and self.tokens < MOST_TOKENS:
            self._best, self.tokens = rate, 2 * self.tokens
        else:
            self.tokens, self._settled = self.tokens // 2, True

    def halve(self) -> None:
        """It did not fit: smaller from now on."""
        self._settled = True
        self.tokens = max(1, self.tokens // 2)
        if self.records is not None:
            self.records = max(1, self.records // 2)


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the host, had no memory left; the host's allocator and MPS have no error of their own."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in message for words in ("out of memory", "not enough memory", "can't allocate memory")
    )

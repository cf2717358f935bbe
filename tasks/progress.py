"""Progress of long work: a bar on a terminal, log lines, and an artifact in the Prefect UI."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

from tasks.artifacts import ShownProgress

log = logging.getLogger(__name__)

_REPORT_EVERY_SECONDS = 5.0


class Progress:
    """Counts finished rows and tokens against a known number of rows; reports rows/s, tokens/s and ETA."""

    def __init__(self, title: str, rows: int, done: int = 0) -> None:
        self._title, self._rows, self._done = title, rows, done
        self._done_at_start = done
        self._tokens = 0
        self._started = self._reported = time.monotonic()
        self._bar: tqdm | None = None
        self._shown: ShownProgress | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._rows, initial=self._done, desc=self._title, unit="row", file=sys.stderr)
        self._shown = ShownProgress(self._title, self._percent())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        self._report()

    def advance(self, rows: int, tokens: int = 0) -> None:
        """Add finished rows and their tokens."""
        self._done += rows
        self._tokens += tokens
        if self._bar is not None:
            if self._tokens:
                self._bar.set_postfix_str(f"{self._tokens / self._elapsed():,.0f} tokens/s", refresh=False)
            self._bar.update(rows)
        if time.monotonic() - self._reported >= _REPORT_EVERY_SECONDS:
            self._report()

    def _report(self) -> None:
        self._reported = time.monotonic()
        rate = (self._done - self._done_at_start) / self._elapsed()
        left = (self._rows - self._done) / rate if rate > 0 else float("inf")
        tokens = f"{self._tokens / self._elapsed():,.0f} tokens/s, " if self._tokens else ""
        message = (
            f"{self._title}: {self._done:,} of {self._rows:,} rows, {rate:,.0f} rows/s, {tokens}ETA {left:,.0f} s"
        )
        log.info("%s", message)
        if self._shown is not None:
            self._shown.update(self._percent(), message)

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def _percent(self) -> float:
        return min(100.0, 100.0 * self._done / max(self._rows, 1))

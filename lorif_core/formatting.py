"""Human-readable numbers and lists: scores, bytes, durations, percentages, names."""

import math
from collections.abc import Sequence

_MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_score(score: float, largest: float) -> str:
    """Signed score with as many decimals as give the query's largest score four digits."""
    if score == 0 or largest == 0:
        return "0"
    exponent = math.floor(math.log10(largest))
    if -4 <= exponent < 6:
        return f"{score:+,.{max(0, 3 - exponent)}f}".replace("-", _MINUS)
    return f"{score / 10**exponent:+.3f}".replace("-", _MINUS) + f" {_TIMES} 10{superscript(exponent)}"


def format_bytes(count: float) -> str:
    """A number of bytes in the largest suitable binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} PiB"


def format_significant(number: float) -> str:
    """A number with four significant digits, with a power of ten if it is very large or small."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    exponent = math.floor(math.log10(abs(number)))
    if -3 <= exponent < 6:
        return f"{number:,.{max(0, 3 - exponent)}f}".replace("-", _MINUS)
    return f"{number / 10**exponent:.3f} {_TIMES} 10{superscript(exponent)}".replace("-", _MINUS)


def superscript(exponent: int) -> str:
    """The exponent in superscript digits."""
    return str(exponent).translate(_SUPERSCRIPTS)


def format_percent(share: float) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * share:.1f} %"


def format_percentile(percentile: float) -> str:
    """A percentile in [0, 100], rounded down, with the decimals that tell it from 100; at most four."""
    rest = 100 - percentile
    decimals = min(4, max(0, math.ceil(-math.log10(rest) - 1e-9))) if 0 < rest < 10 else 0
    digits = math.floor(percentile * 10**decimals + 1e-6) / 10**decimals
    return f"{digits:.{decimals}f}\N{NO-BREAK SPACE}%"


def format_signed_percent(share: float) -> str:
    """A share that may be negative, as a signed percentage without decimals."""
    return f"{100 * share:+.0f}\N{NO-BREAK SPACE}%".replace("-", _MINUS)


def format_signed(number: float) -> str:
    """A number with its sign and two decimals."""
    return f"{number:+.2f}".replace("-", _MINUS)


def format_seconds(seconds: float) -> str:
    """A duration in seconds, minutes and seconds, or hours and minutes."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

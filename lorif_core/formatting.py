"""Numbers as people read them: scores, bytes, durations, shares."""

import math

_MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_score(score: float, largest: float) -> str:
    """`score` signed, with four digits of the query's largest: all scores of a query get the same decimals."""
    if score == 0 or largest == 0:
        return "0"
    exponent = math.floor(math.log10(largest))
    if -4 <= exponent < 6:
        return f"{score:+,.{max(0, 3 - exponent)}f}".replace("-", _MINUS)
    return f"{score / 10**exponent:+.3f}".replace("-", _MINUS) + f" {_TIMES} 10{superscript(exponent)}"


def format_bytes(count: float) -> str:
    """`count` bytes in the binary unit that keeps it readable."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} PiB"


def format_significant(number: float) -> str:
    """`number` with four significant digits, in powers of ten where plain digits would be long."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    exponent = math.floor(math.log10(abs(number)))
    if -3 <= exponent < 6:
        return f"{number:,.{max(0, 3 - exponent)}f}".replace("-", _MINUS)
    return f"{number / 10**exponent:.3f} {_TIMES} 10{superscript(exponent)}".replace("-", _MINUS)


def superscript(exponent: int) -> str:
    """`exponent` in raised digits, so that a power of ten is plain text."""
    return str(exponent).translate(_RAISED)


def format_percent(share: float) -> str:
    """A share of 1 as a percentage."""
    return f"{100 * share:.1f} %"


def format_signed_percent(share: float) -> str:
    """A share of 1 that may be negative, as a whole percentage."""
    return f"{100 * share:+.0f}\N{NO-BREAK SPACE}%".replace("-", _MINUS)


def format_seconds(seconds: float) -> str:
    """A duration in the two units that keep it readable."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"

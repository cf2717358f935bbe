"""Types of command-line options; they raise ArgumentTypeError, and argparse prints its message."""

import argparse


def number(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    value = number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def port(text: str) -> int:
    """A port, or 0 for a free one."""
    value = number(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give a number from 0 to 65535")
    return value


def share(text: str) -> float:
    """A share of the rows, above 0 and at most 1."""
    value = _decimal(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"the fraction is {text}; it must be above 0 and at most 1")
    return value


def gigabytes(text: str) -> float:
    """An amount of memory in GiB."""
    value = _decimal(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not an amount of memory; give a number of GiB, 0 or more")
    return value


def span(text: str) -> dict[str, int]:
    """START:END, two numbers of characters, as the span of a query."""
    start, _, end = text.partition(":")
    if not (start.isdecimal() and end.isdecimal() and int(start) < int(end)):
        raise argparse.ArgumentTypeError(f"{text} is not a span; give START:END, such as 10:25")
    return {"start": int(start), "end": int(end)}


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None

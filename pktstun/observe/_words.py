"""Numbers as a person reads them, in few columns; and tables of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ._rates import Count
    from ._service import Info

UNKNOWN = "-"

_IN_FULL = 10_000_000
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: int, columns: int = 9) -> str:
    """Return a count in so many columns at most, six at least.

    >>> number(1234567), number(12345678), number(1234567890123)
    ('1,234,567', '12.346 M', '1.235 T')
    >>> number(99999, 6), number(123456, 6), number(999999, 6)
    ('99,999', '123 k', '1.00 M')
    """
    text, scaled = f"{value:,}", float(value)
    if len(text) <= columns:
        return text
    for unit in "kMGTPE":
        scaled /= 1000
        text = f"{scaled:.3f}"[: columns - 2].rstrip(".") + f" {unit}"
        if round(scaled) < 1000:
            break
    return text


def rate(value: float | None, columns: int = 9) -> str:
    """Return how often in a second; what is not 0 does not look like 0.

    >>> rate(None), rate(0), rate(0.01), rate(0.52), rate(1234.5)
    ('-', '0', '<0.1', '0.5', '1,234')
    """
    if value is None:
        return UNKNOWN
    if 0 < value < 0.05:
        return "<0.1"
    return f"{value:.1f}" if 0 < value < 9.95 else number(round(value), columns)


def lately(count: Count) -> str:
    """Return the rate of a count, if it is known, and how many there are.

    >>> from pktstun.observe import Count
    >>> lately(Count(1234, 0.5)), lately(Count(1234, None)), lately(Count(0, 0.0))
    ('0.5/s (1,234 so far)', '1,234', '0')
    """
    if not count.total or count.rate is None:
        return number(count.total)
    return f"{rate(count.rate)}/s ({number(count.total)} so far)"


def percent(share: float | None) -> str:
    """Return a share in four columns; what is not 0 or all does not look like it.

    >>> percent(None), percent(0), percent(0.001), percent(0.4), percent(0.999), percent(1)
    ('-', '0%', '<1%', '40%', '>99%', '100%')
    """
    if share is None:
        return UNKNOWN
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def mean(value: float | None) -> str:
    """Return a mean with one digit behind the point."""
    return UNKNOWN if value is None else f"{value:.1f}" if value < 1000 else number(round(value))


def span(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> span(5), span(754), span(7200), span(90061)
    ('5 s', '12 min 34 s', '2 h 0 min', '1 d 1 h')
    """
    left = max(0, int(seconds))
    words: list[str] = []
    for size, unit in _UNITS:
        if left >= size or words or size == 1:
            words.append(f"{left // size} {unit}")
            left %= size
    return " ".join(words[:2])


def age(seconds: float) -> str:
    """Return a short time in few columns, whatever has become of it.

    >>> age(0.04), age(99.9), age(7300)
    ('0.0 s', '99.9 s', '2 h')
    """
    return f"{seconds:.1f} s" if seconds < 100 else " ".join(span(seconds).split()[:2])


def milliseconds(seconds: float) -> str:
    """Return a latency.

    >>> milliseconds(0.0001234), milliseconds(0.25)
    ('0.12 ms', '250 ms')
    """
    value = seconds * 1000
    return f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"


def way(info: Info) -> str:
    """Return how requests are read."""
    words = info.mode
    if info.iface is not None:
        words += f" on {info.iface}"
    return f"{words} with takeover" if info.takeover else words


def table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Return lines of aligned columns: those of `left` to the left, the others to the right.

    >>> table([["a", "bbb"], ["cc", "d"]])
    ['a   bbb', 'cc    d']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Iterable[str]) -> str:
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]

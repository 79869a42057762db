"""Small inline SVG plots, drawn here and not in the browser: no script, no library, no font file.

Horizontal places are percentages and vertical ones pixels, so a plot fills whatever width it gets
while its text and strokes keep their size. Colours are classes of the page's stylesheet, so one
drawing serves light, dark and print. Every plot carries its figures as a text alternative; what is
unknown is left out of the drawing, never put at zero.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

__all__ = [
    "LOG_2",
    "Bar",
    "Curve",
    "Histogram",
    "Mark",
    "Row",
    "bars",
    "figure",
    "forest",
    "histogram",
    "line_plot",
    "rolling_mean",
    "trace_plot",
]

LOG_2 = math.log(2)
"""The DPO loss of a policy that is still its reference."""

HEIGHT = 190  # of line plots and histograms, px
STRIP = 10_000  # width of the curves' own coordinates; stretched to the plot's
ROW = 46  # of a forest plot, px
BAR = 34  # of a bar, px
BINS = 18  # wished for; round edges may make a few more or fewer

Number = float | None


class Curve(NamedTuple):
    """A line over 1, 2, 3, … (or from `start`); `style` is a class of the stylesheet."""

    name: str
    ys: Sequence[Number]
    style: str = "candidate"
    start: int = 1
    thin: bool = False
    """Drawn faintly: the raw values behind a smoothed curve, which says it in words."""


class Histogram(NamedTuple):
    """One value a prompt."""

    name: str
    values: Sequence[float]
    style: str = "candidate"


class Mark(NamedTuple):
    """A threshold or a point of reference."""

    at: float
    label: str


class Row(NamedTuple):
    """An estimate with its interval; None where there is none."""

    name: str
    note: str
    estimate: Number
    low: Number
    high: Number
    strong: bool = False
    mark: Number = None
    """A line of its own."""


class Bar(NamedTuple):
    """A count and its name."""

    name: str
    value: float


def figure(value: Number, kind: str = "number") -> str:
    """A figure as people read it; None is `unknown`.

    Kinds: `number` (three significant digits), `score`, `rate` (in per cent), `tokens`, `nats`,
    `points` (a difference of rates, times 100), `signed`, `difference` (of scores), `ratio`,
    `count`, `seconds`.
    """
    if value is None or not math.isfinite(value):
        return "unknown"
    if kind == "rate":
        return f"{value:.1%}"
    if kind in ("points", "signed"):
        return f"{100 * value if kind == 'points' else value:+.1f}".replace("-", "−")
    if kind == "difference":
        return f"{value:+.3f}".replace("-", "−")
    digits = {"score": 3, "tokens": 1, "nats": 2, "ratio": 2, "count": 0, "seconds": 1}.get(kind)
    text = _significant(value) if digits is None else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def rolling_mean(values: Sequence[Number], window: int = 10) -> list[Number]:
    """The mean of the last `window` known values up to each place."""
    means: list[Number] = []
    for end in range(1, len(values) + 1):
        known = [v for v in values[max(0, end - window) : end] if v is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def line_plot(
    key: str,
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    mark: Mark | None = None,
    log: bool = False,
) -> Markup:
    """Curves over whole steps, with an axis and at most one threshold.

    Args:
        key: unique on the page; the text alternative is tied to the drawing by it.
        log: the vertical axis is in powers of ten; values of zero and below are left out.
    """
    curves = [c._replace(ys=[_drawable(y, log) for y in c.ys]) for c in curves]
    known = [y for c in curves for y in c.ys if y is not None]
    if not known:
        return Markup("")
    spread = [*known, mark.at] if mark else known
    y_axis = _Axis.log(spread) if log else _Axis.round(spread)
    # never narrower than one step, so that a single step has a place
    first = min(c.start for c in curves)
    last = max(first + 1, *(c.start + len(c.ys) - 1 for c in curves))
    x_axis = _Axis(first, last, [t for t in _round_ticks(first, last, whole=True) if t >= first])
    parts = [*_y_grid(y_axis, y_label), *_x_ticks(x_axis, x_label, HEIGHT)]
    if mark:
        parts.append(_level(mark, y_axis))
    parts += [_curve(c, x_axis, y_axis) for c in curves]
    spoken = [_curve_words(c) for c in curves if not c.thin]
    spoken += [f"{mark.label} at {figure(mark.at)}"] if mark else []
    return _svg(key, title, spoken, HEIGHT, parts)


def trace_plot(
    key: str, title: str, xs: Sequence[Number], ys: Sequence[Number], *, x_label: str, y_label: str
) -> Markup:
    """One figure against another, in the order they came; the last point has a dot."""
    points = [(x, y) for x, y in zip(xs, ys, strict=False) if x is not None and y is not None]
    if len(points) < 2:
        return Markup("")
    x_axis, y_axis = (_Axis.round(side) for side in zip(*points, strict=True))
    places = [(x_axis.at(x), _y(y_axis, y)) for x, y in points]
    drawn = [f"{STRIP * x:.0f},{y}" for x, y in places]
    x, y = places[-1]
    parts = [
        *_y_grid(y_axis, y_label),
        *_x_ticks(x_axis, x_label, HEIGHT),
        _stretched([_polyline("curve candidate", drawn)]),
        _draw('<circle class="dot candidate" cx="{}" cy="{}" r="3.5"/>', _percent(x), y),
    ]
    (x_first, y_first), (x_last, y_last) = points[0], points[-1]
    spoken = f"from {figure(y_first)} at {figure(x_first)} to {figure(y_last)} at {figure(x_last)}"
    return _svg(key, title, [spoken], HEIGHT, parts)


def histogram(
    key: str, title: str, series: Sequence[Histogram], *, x_label: str, unit: str = "prompts"
) -> Markup:
    """One or two distributions over the same bins; dotted lines are the means.

    Args:
        unit: what each value is of.
    """
    series = [s for s in series if s.values]
    values = [v for s in series for v in s.values]
    if not values:
        return Markup("")
    edges = _edges(min(values), max(values))
    ticks = [t for t in _round_ticks(edges[0], edges[-1]) if edges[0] <= t <= edges[-1]]
    x_axis = _Axis(edges[0], edges[-1], ticks)
    counts = [_counts(s.values, edges) for s in series]
    y_axis = _Axis.counts(max(max(c) for c in counts))
    parts = [
        *_y_grid(y_axis, f"{unit}; dotted lines are means"),
        *_x_ticks(x_axis, x_label, HEIGHT),
    ]
    for one, count in zip(series, counts, strict=True):
        parts.append(_steps(one.style, count, edges, x_axis, y_axis))
    for one in series:
        mean = sum(one.values) / len(one.values)
        parts.append(_upright(f"mean {one.style}", x_axis.at(mean), 0, HEIGHT))
    return _svg(key, title, [_histogram_words(s, unit) for s in series], HEIGHT, parts)


def forest(
    key: str,
    title: str,
    rows: Sequence[Row],
    *,
    x_label: str,
    mark: Mark | None = None,
    span: tuple[float, float] | None = None,
) -> Markup:
    """One row an estimate: its name and note in words, its interval on a common axis below them.

    Zero is a solid line, the mark and a row's own are dashed ones; they stand behind the intervals
    only, so that no line runs through a word.

    Args:
        span: ends of the axis, for shares. Without it all are differences in points: the axis is
            as wide as they need, holds zero, and figures carry their sign.
    """
    known = [v for r in rows for v in (r.estimate, r.low, r.high) if v is not None]
    if not known:
        return Markup("")
    axis = _Axis.round(span or [*known, 0.0, *([mark.at] if mark else [])])
    uprights = [("grid", tick) for tick in axis.ticks]
    uprights += [] if span else [("zero", 0.0)]
    uprights += [("mark", mark.at)] if mark else []
    parts: list[Markup] = []
    for place, row in enumerate(rows):
        top = ROW * place
        own = [] if row.mark is None else [("mark", row.mark)]
        lines = [*uprights, *own]
        parts += [_upright(style, axis.at(at), top + 22, top + 40) for style, at in lines]
        parts += _interval(row, axis, top)
    height = ROW * len(rows)
    parts += _x_ticks(axis, x_label, height, signed=span is None)
    spoken = [_share_words(r) if span else _row_words(r) for r in rows]
    return _svg(key, title, spoken, height, parts, wide=True)


def bars(key: str, title: str, rows: Sequence[Bar]) -> Markup:
    """One thin bar a count, all against the largest."""
    most = max((r.value for r in rows), default=0)
    parts: list[Markup] = []
    for place, row in enumerate(rows):
        top = BAR * place
        share = row.value / most if most > 0 else 0.0
        parts.append(_draw('<text class="name" x="0" y="{}">{}</text>', top + 12, _short(row.name)))
        parts.append(
            _draw(
                '<text class="value end" x="100%" y="{}">{}</text>',
                top + 12,
                figure(row.value, "count"),
            )
        )
        parts.append(_draw('<rect class="track" x="0" width="100%" y="{}" height="3"/>', top + 19))
        parts.append(
            _draw(
                '<rect class="bar" x="0" width="{}" y="{}" height="3"/>', _percent(share), top + 19
            )
        )
    spoken = [f"{r.name}: {figure(r.value, 'count')}" for r in rows]
    return _svg(key, title, spoken, BAR * len(rows), parts, wide=True) if rows else Markup("")


class _Axis(NamedTuple):
    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool = False

    @classmethod
    def round(cls, values: Iterable[float]) -> "_Axis":
        """From tick to tick around the values."""
        values = list(values)
        ticks = _round_ticks(min(values), max(values))
        return cls(ticks[0], ticks[-1], ticks)

    @classmethod
    def counts(cls, most: int) -> "_Axis":
        ticks = _round_ticks(0, most, whole=True, most=4)
        return cls(0, ticks[-1], ticks)

    @classmethod
    def log(cls, values: Iterable[float]) -> "_Axis":
        """Whole powers of ten around the values, at most six of them named."""
        exponents = [math.log10(v) for v in values]
        low, high = math.floor(min(exponents)), math.ceil(max(exponents))
        high = max(high, low + 1)
        every = math.ceil((high - low) / 5)
        ticks = [10.0**e for e in range(low, high + 1) if e % every == 0]
        return cls(float(low), float(high), ticks, is_log=True)

    def texts(self, signed: bool = False) -> list[str]:
        """The ticks in words, all with the decimals that the finest of them needs."""
        if self.is_log:
            return [_power(round(math.log10(tick))) for tick in self.ticks]
        exact = [f"{tick:.6f}".rstrip("0") for tick in self.ticks]
        digits = max((len(text.partition(".")[2]) for text in exact), default=0)
        sign = "+" if signed else ""
        return [
            f"{tick or 0.0:{sign if tick else ''},.{digits}f}".replace("-", "−")
            for tick in self.ticks
        ]

    def at(self, value: float) -> float:
        """The place of a value as a share of the axis."""
        value = math.log10(value) if self.is_log else value
        return (value - self.low) / (self.high - self.low)


def _round_ticks(low: float, high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose the range."""
    if high <= low:
        pad = max(abs(low) * 0.1, 1.0 if whole else 1e-3)
        low, high = low - (0 if whole else pad), high + pad
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _edges(low: float, high: float) -> list[float]:
    if high <= low:
        pad = max(abs(low) * 0.5, 0.5)
        low, high = low - pad, high + pad
    return _round_ticks(low, high, most=BINS)


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts, width = [0] * (len(edges) - 1), edges[1] - edges[0]
    for value in values:
        counts[min(int((value - edges[0]) / width), len(counts) - 1)] += 1
    return counts


def _y_grid(axis: _Axis, label: str) -> list[Markup]:
    parts = [_draw('<text class="axis" x="0" y="-14">{}</text>', label)]
    for tick, text in zip(axis.ticks, axis.texts(), strict=True):
        y = _y(axis, tick)
        parts.append(_draw('<line class="grid" x1="0" x2="100%" y1="{}" y2="{}"/>', y, y))
        parts.append(
            _draw('<text class="tick end" x="0" dx="-10" y="{}" dy="4">{}</text>', y, text)
        )
    return parts


def _x_ticks(axis: _Axis, label: str, height: int, *, signed: bool = False) -> list[Markup]:
    parts = [
        _draw(
            '<text class="tick middle" x="{}" y="{}">{}</text>',
            _percent(axis.at(tick)),
            height + 20,
            text,
        )
        for tick, text in zip(axis.ticks, axis.texts(signed), strict=True)
        if axis.at(tick) <= 1 + 1e-9
    ]
    return [*parts, _draw('<text class="axis middle" x="50%" y="{}">{}</text>', height + 42, label)]


def _level(mark: Mark, axis: _Axis) -> Markup:
    y = _y(axis, mark.at)
    return _draw('<line class="mark" x1="0" x2="100%" y1="{}" y2="{}"/>', y, y)


def _upright(style: str, share: float, top: int, bottom: int) -> Markup:
    at = _percent(share)
    return _draw('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>', style, at, at, top, bottom)


def _curve(curve: Curve, x_axis: _Axis, y_axis: _Axis) -> Markup:
    """A polyline for each unbroken stretch of known values, and a dot on the last."""
    style = f"curve {curve.style}{' thin' if curve.thin else ''}"
    stretches: list[list[str]] = [[]]
    last = None
    for step, y in enumerate(curve.ys, start=curve.start):
        if y is None:
            stretches.append([])
            continue
        last = (x_axis.at(step), _y(y_axis, y))
        stretches[-1].append(f"{STRIP * last[0]:.0f},{last[1]}")
    drawn = [_polyline(style, points) for points in stretches if len(points) > 1]
    part = _stretched(drawn)
    if last and not curve.thin:
        part += _draw(
            '<circle class="dot {}" cx="{}" cy="{}" r="3.5"/>',
            curve.style,
            _percent(last[0]),
            last[1],
        )
    return part


def _steps(
    style: str, counts: Sequence[int], edges: Sequence[float], x_axis: _Axis, y_axis: _Axis
) -> Markup:
    """The outline of a histogram, lightly filled."""
    points = [f"{STRIP * x_axis.at(edges[0]):.0f},{HEIGHT}"]
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        y = _y(y_axis, count)
        points += [f"{STRIP * x_axis.at(left):.0f},{y}", f"{STRIP * x_axis.at(right):.0f},{y}"]
    points.append(f"{STRIP * x_axis.at(edges[-1]):.0f},{HEIGHT}")
    return _stretched([_polyline(f"steps {style}", points)])


def _polyline(style: str, points: Sequence[str]) -> Markup:
    return _draw(
        '<polyline class="{}" vector-effect="non-scaling-stroke" points="{}"/>',
        style,
        " ".join(points),
    )


def _stretched(drawn: Sequence[Markup]) -> Markup:
    """Polylines know no percentages, so they live in coordinates of their own."""
    return _draw(
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" width="100%" height="{}">{}</svg>',
        STRIP,
        HEIGHT,
        HEIGHT,
        Markup("").join(drawn),
    )


def _interval(row: Row, axis: _Axis, top: int) -> list[Markup]:
    name = "name strong" if row.strong else "name"
    parts = [
        _draw('<text class="{}" x="0" y="{}">{}</text>', name, top + 14, _short(row.name)),
        _draw('<text class="value end" x="100%" y="{}">{}</text>', top + 14, row.note),
    ]
    y = top + 31
    if row.low is not None and row.high is not None:
        parts.append(
            _draw(
                '<line class="interval" x1="{}" x2="{}" y1="{}" y2="{}"/>',
                _percent(axis.at(row.low)),
                _percent(axis.at(row.high)),
                y,
                y,
            )
        )
    if row.estimate is not None:
        parts.append(
            _draw(
                '<circle class="dot candidate" cx="{}" cy="{}" r="{}"/>',
                _percent(axis.at(row.estimate)),
                y,
                5 if row.strong else 4,
            )
        )
    return parts


def _svg(
    key: str,
    title: str,
    spoken: Sequence[str],
    height: int,
    parts: Sequence[Markup],
    *,
    wide: bool = False,
) -> Markup:
    return _draw(
        '<svg class="plot{}" role="img" aria-labelledby="{}-title {}-desc" width="100%"'
        ' height="{}"><title id="{}-title">{}</title><desc id="{}-desc">{}</desc>{}</svg>',
        " wide" if wide else "",
        key,
        key,
        height,
        key,
        title,
        key,
        ". ".join(spoken) + ".",
        Markup("").join(parts),
    )


def _draw(form: str, *values: object) -> Markup:
    """Fill a piece of SVG; every value that is not itself a drawing is escaped."""
    return Markup(form).format(*values)


def _curve_words(curve: Curve) -> str:
    known = [y for y in curve.ys if y is not None]
    return (
        f"{curve.name}: {len(known)} points, starts at {figure(known[0])}, ends at "
        f"{figure(known[-1])}, between {figure(min(known))} and {figure(max(known))}"
        if known
        else f"{curve.name}: unknown"
    )


def _histogram_words(series: Histogram, unit: str) -> str:
    values = sorted(series.values)
    middle = values[len(values) // 2]
    return (
        f"{series.name}: {len(values)} {unit}, mean {figure(sum(values) / len(values))}, "
        f"median {figure(middle)}, between {figure(values[0])} and {figure(values[-1])}"
    )


def _row_words(row: Row) -> str:
    if row.estimate is None:
        return f"{row.name}: unknown"
    return (
        f"{row.name}: {figure(row.estimate, 'signed')} points, "
        f"from {figure(row.low, 'signed')} to {figure(row.high, 'signed')}; {row.note}"
    )


def _share_words(row: Row) -> str:
    if row.estimate is None:
        return f"{row.name}: unknown"
    limits = f", from {figure(row.low)} to {figure(row.high)}" if row.low is not None else ""
    line = "" if row.mark is None else f", its line at {figure(row.mark)}"
    return f"{row.name}: {figure(row.estimate)}{limits}{line}; {row.note}"


def _short(name: str, most: int = 30) -> str:
    """What fits beside a figure on a phone; SVG text does not wrap."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _drawable(value: Number, log: bool) -> Number:
    if value is None or not math.isfinite(value) or (log and value <= 0):
        return None
    return min(max(value, 1e-300), 1e300) if log else value


def _significant(value: float) -> str:
    size = abs(value)
    if value and (size >= 1e6 or size < 1e-3):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')} × {_power(int(exponent))}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def _power(exponent: int) -> str:
    """A power of ten: in digits near one, as 10ⁿ far from it."""
    if -2 <= exponent <= 4:
        return f"{10.0**exponent:,.{max(0, -exponent)}f}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _y(axis: _Axis, value: float) -> float:
    return round(HEIGHT * (1 - axis.at(value)), 1)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"

"""Personal data and secrets by their form, each checked for more than its looks where it can be:
a card by Luhn's digit and its issuer's range, an account by mod 97 and its country's length.

What is ordinary survives: dates, prices, versions, loopback addresses, code. Every pattern is
bounded and starts where a word starts, so that no text takes longer than its length. A cheap
test stands before each that most texts fail: one that begins with a plain character or set, which
the engine skips to, where a look behind would be tried at every place.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["GROUPS", "Group", "Pattern", "is_card", "is_iban"]


class Pattern(NamedTuple):
    """One kind of personal data."""

    name: str
    """As the placeholder says it, `<EMAIL_1>`."""
    form: re.Pattern[str]
    """What is replaced is the group `hide`, or the whole match."""
    holds: Callable[[str], bool] = lambda found: True
    """The check of what the form alone cannot say."""


class Group(NamedTuple):
    """Patterns behind one test."""

    may_have: Callable[[str], bool]
    """A cheap test that most texts fail."""
    patterns: tuple[Pattern, ...]


def is_card(found: str) -> bool:
    """Luhn's check, and a length and a beginning that an issuer has given out."""
    digits = [int(c) for c in found if c.isdigit()]
    number, size = "".join(map(str, digits)), len(digits)
    two, four = int(number[:2]), int(number[:4])
    is_issued = (
        (number[0] == "4" and size in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and size == 16)
        or (two in (34, 37) and size == 15)
        or ((four == 6011 or two == 65 or 6440 <= four <= 6499) and size in (16, 19))
        or (two in (36, 38, 39) and size == 14)
        or (3528 <= four <= 3589 and size in (16, 19))
        or (two == 62 and 16 <= size <= 19)
    )
    doubled = (sum(divmod(2 * d, 10)) for d in digits[-2::-2])
    return is_issued and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI NL FO GL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
IBAN_LENGTHS = {country: size for size, line in COUNTRIES.items() for country in line.split()}


def is_iban(found: str) -> bool:
    """The country's length and ISO 7064's check, mod 97."""
    plain = found.replace(" ", "")
    if len(plain) != IBAN_LENGTHS.get(plain[:2]):
        return False
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _is_somebodys_ipv4(found: str) -> bool:
    address = ipaddress.IPv4Address(found)
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def _is_ipv6(found: str) -> bool:
    try:
        ipaddress.IPv6Address(found)
    except ValueError:
        return False
    return True


_TOKENS = (
    r"sk-[A-Za-z0-9_-]{16,200}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,200}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_-]{20,64}|xox[abeoprs]-[A-Za-z0-9-]{10,250}|AIza[0-9A-Za-z_-]{32,44}"
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}"
)
_WEB_TOKEN = r"eyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{4,8000}\.[A-Za-z0-9_-]{8,2000}"


def _has(form: str) -> Callable[[str], bool]:
    search = re.compile(form).search
    return lambda text: search(text) is not None


_search_aws = re.compile(r"IA[0-9A-Z]{16}").search  # AKIA…, ASIA…
_KEY_TESTS = (
    lambda text: "J" in text and "eyJ" in text,  # a single letter is found many times as fast
    lambda text: "I" in text and ("AIza" in text or _search_aws(text) is not None),
    _has(r"-[A-Za-z0-9_-]{10}"),  # sk-, glpat-, xoxb-, pypi-
    _has(r"_[A-Za-z0-9_]{16}"),  # ghp_, github_pat_, hf_, npm_, sk_live_
)
"""What every key has in it somewhere; each begins with what a search skips to."""


def _has_key(text: str) -> bool:
    return any(test(text) for test in _KEY_TESTS)


_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
_search_number = re.compile(r"[0-9](?:(?:[ ().-]{0,2}[0-9]){8}|(?:\.[0-9]{1,3}){3})").search


def _has_number(text: str) -> bool:
    """Nine digits in a row, as an account has too, or what looks like an IP address; the shortest
    has four digits, and to count them first is much quicker."""
    digits = text.encode("utf-8", "surrogatepass").translate(None, _NO_DIGITS)
    return len(digits) >= 4 and _search_number(text) is not None


GROUPS = (
    Group(
        lambda text: "-----BEGIN" in text,
        (
            Pattern(
                "PRIVATE_KEY",
                re.compile(
                    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:(?!-----).){0,20000}"
                    r"(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?",
                    re.DOTALL,
                ),
            ),
        ),
    ),
    Group(
        _has_key,
        (
            Pattern("KEY", re.compile(rf"(?<![A-Za-z0-9_])(?:{_TOKENS})(?![A-Za-z0-9_])")),
            # not behind a dash either: each of many would have all of the rest tried
            Pattern("KEY", re.compile(rf"(?<![A-Za-z0-9_-]){_WEB_TOKEN}(?![A-Za-z0-9_])")),
        ),
    ),
    Group(
        lambda text: "earer " in text,
        (
            Pattern(
                "KEY",
                re.compile(
                    r"\b[Bb]earer (?P<hide>[A-Za-z0-9._~+/-]{20,4000}={0,2})(?![A-Za-z0-9])"
                ),
                lambda found: any(c.isdigit() for c in found),
            ),
        ),
    ),
    Group(
        lambda text: "@" in text,
        (
            Pattern(
                "CREDENTIALS",
                re.compile(
                    r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.-]{0,20}://"
                    r"(?P<hide>[^\s/:@<>\"']{0,100}:[^\s/@<>\"']{1,200})@"
                ),
            ),
            Pattern(
                "EMAIL",
                re.compile(
                    r"(?<![\w.%+-])[\w.%+-]{1,64}@"
                    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
                    r"[A-Za-z]{2,24}(?![A-Za-z0-9])"
                ),
            ),
        ),
    ),
    Group(
        _has(r"\+[1-9][ ().-]{0,2}[0-9]"),
        (
            Pattern(
                "PHONE",
                re.compile(r"(?<![\w)+.])\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}(?![\w]|[.,-][0-9])"),
            ),
        ),
    ),
    Group(
        _has_number,
        (
            Pattern(
                "IBAN",
                re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}"),
                is_iban,
            ),
            Pattern(
                "CARD",
                re.compile(r"(?<![\w.,-])[2-6][0-9]{3}(?:[ -]?[0-9]){9,15}(?![\w]|[.,-][0-9])"),
                is_card,
            ),
            Pattern(
                "SSN",
                re.compile(
                    r"(?<![\w.-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}"
                    r"(?![\w]|[.-][0-9])"
                ),
            ),
            Pattern(
                "PHONE",
                re.compile(
                    r"(?<![\w.+-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])"
                    r"[2-9][0-9]{2}[.-][0-9]{4}(?![\w]|[.-][0-9])"
                ),
            ),
            Pattern(
                "IP",
                re.compile(
                    rf"(?<![\w.])(?<!ersion )(?<!elease )(?:{_BYTE}\.){{3}}{_BYTE}"
                    r"(?![\w]|\.[0-9])"
                ),
                _is_somebodys_ipv4,
            ),
        ),
    ),
    Group(
        _has(r":[0-9A-Fa-f:]{2}"),
        (
            Pattern(
                "IP",
                re.compile(
                    r"(?<![\w:.])(?:[23][0-9A-Fa-f]{3}|[fF][cdCD][0-9A-Fa-f]{2}|[fF][eE]80):"
                    r"[0-9A-Fa-f:]{2,34}(?![\w:])"
                ),
                _is_ipv6,
            ),
        ),
    ),
)
"""In the order they are looked for: what one has hidden, the next does not see."""

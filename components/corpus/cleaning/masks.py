"""E-mail addresses, phone numbers and public IP addresses replaced by ones that belong to nobody.

The replacements look like what they stand for, so that a model sees ordinary text and no special token is collided
with: `email@example.com` (RFC 2606; as FineWeb), `555-0100` (reserved for fiction in North America), `192.0.2.1` (RFC
5737) and `2001:db8::1` (RFC 3849), where FineWeb takes public addresses that did not answer.

Patterns, not understanding. Not found: addresses written as "name at example dot com", national phone numbers of other
countries than China and North America that do not start with +. Found in error: a four-part version or section number
with a public first part ("release 8.1.2.3"; not after "v", "version" or 版本), an eleven-digit number that starts with
13 to 19. Names, addresses and identity numbers are not looked for: this is no anonymisation.
"""

from __future__ import annotations

import ipaddress
import re

EMAIL = "email@example.com"
PHONE = "555-0100"
IPV4 = "192.0.2.1"
IPV6 = "2001:db8::1"

SUSPECT_EMAIL = "@"
SUSPECT_PHONE = r"[0-9][0-9 .()-]{5,}[0-9]"
SUSPECT_IP = r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]*:"
"""RE2 patterns of what could be one."""

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9@-])"
)
_BEFORE_PHONE = r"(?<![0-9A-Za-z_+/])(?<![0-9][.-])"
_AFTER_PHONE = r"(?![0-9A-Za-z_])(?![.-][0-9])"
_PHONE = re.compile(
    _BEFORE_PHONE
    + r"(?:"
    + r"\+[0-9]{1,3}(?:[ .-]?\(?[0-9]{1,4}\)?){2,6}"  # international, 8 to 15 digits (E.164)
    + r"|(?:86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}"  # Chinese mobile
    + r"|(?:\(0[1-9][0-9]{1,2}\) ?|0[1-9][0-9]{1,2}-)[0-9]{7,8}"  # Chinese landline
    + r"|[48]00-[0-9]{3,4}-[0-9]{3,4}"  # Chinese service number
    + r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4}"  # North American
    + r")"
    + _AFTER_PHONE
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_BEFORE_IPV4 = r"(?<![0-9A-Za-z_])(?<![0-9]\.)(?<!version )(?<!Version )(?<!版本)(?<!版本 )"
_IPV4 = re.compile(_BEFORE_IPV4 + rf"(?:{_OCTET}\.){{3}}{_OCTET}(?![0-9A-Za-z_])(?!\.[0-9])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z_:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z_:])")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def without_emails(text: str) -> str:
    """`text` with each e-mail address as `EMAIL`."""
    return _EMAIL.sub(EMAIL, text)


def without_phones(text: str) -> str:
    """`text` with each phone number as `PHONE`."""
    return _PHONE.sub(_masked_phone, text)


def without_ips(text: str) -> str:
    """`text` with each public IP address as `IPV4` or `IPV6`; private and reserved ones stay."""
    return _IPV6.sub(_masked_ipv6, _IPV4.sub(_masked_ipv4, text))


def _masked_phone(match: re.Match[str]) -> str:
    number = match[0]
    is_phone = not number.startswith("+") or 8 <= sum(map(str.isdigit, number)) <= 15
    return PHONE if is_phone else number


def _masked_ipv4(match: re.Match[str]) -> str:
    return IPV4 if ipaddress.IPv4Address(match[0]).is_global else match[0]


def _masked_ipv6(match: re.Match[str]) -> str:
    try:
        address = ipaddress.IPv6Address(match[0])
    except ValueError:
        return match[0]  # a time of day, a C++ name
    return IPV6 if address.is_global and address in _GLOBAL_UNICAST else match[0]

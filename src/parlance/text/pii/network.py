"""E-mail, IP and MAC addresses, credentials in URLs, and `@handles`.

    list(find_emails("write to ada@lovelace.org"))   # -> [Span(9, 25, "EMAIL", 1.0)]

Every function finds a rare character first ("@", "://", ".") and looks at its surroundings, so that text without any is
passed at the speed of a character search. All patterns are bounded: time is linear in the text.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from parlance.text.pii.context import mentioned_near, supported, word_set, words_before
from parlance.text.pii.spans import Span

_LOCAL_BACKWARDS = re.compile(r"[A-Za-z0-9À-ÖØ-öø-ɏ!#$%&'*+/=?^_`{|}~.-]{1,65}")
_DOMAIN = re.compile(r"[A-Za-z0-9.-]{1,254}")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_TOP_LEVEL = re.compile(r"[A-Za-z]{2,63}|xn--[A-Za-z0-9-]{2,59}")
_COMMON_TOP_LEVELS = word_set(
    "com org net edu gov mil int info biz name pro aero coop museum mobi jobs travel tel cat asia post xxx app dev "
    "blog cloud club online site shop store tech xyz top live news email work world today life page link website "
    "space group agency digital design studio media company solutions services consulting network systems software "
    "academy education university school bank finance health hospital law legal games music photo photos art wiki "
    "social team zone"
)
_FILE_SUFFIXES = word_set(
    "png jpg jpeg gif svg webp bmp ico js jsx mjs css scss json html htm xml tgz gz zip pdf txt py md yml yaml"
)
_EMAIL_WORDS = frozenset({"mail", "email", "emails", "mailto", "contact", "e", "write", "from", "to", "cc"})

_IPV4 = re.compile(r"[0-9][0-9]{0,2}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![\w-]|\.[\w])")
_IPV4_MIDDLE = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
"""Begins with its rarest character, which is searched for fastest."""
_IP_NEIGHBOURS = ("dns", "server", "host", "gateway", " ip", "ip ", "ip:")
_NOT_IP_WORDS = word_set("version versions v ver release revision section sections chapter rfc oid firmware build")
_NAME_SERVERS = word_set(
    "8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 76.76.19.19 76.223.122.150 "
    "94.140.14.14 94.140.15.15 64.6.64.6 64.6.65.6 8.26.56.26 8.20.247.20"
)
_HEX_GROUP = re.compile(r":[0-9A-Fa-f]{0,4}:")
_V6_BACKWARDS = re.compile(r"[0-9A-Fa-f:.]{0,45}")
_V6_FORWARDS = re.compile(r"[0-9A-Fa-f:.]{1,46}")
_MAC_MIDDLE = re.compile(r"([:-])[0-9A-Fa-f]{2}\1")
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![0-9A-Za-z]|\1)")

_SCHEME_BACKWARDS = re.compile(r"[A-Za-z0-9+.-]{2,20}")
_USER_AND_HOST = re.compile(r"[^\s/?#@:\"'<>]{0,80}:([^\s/?#@\"'<>]{1,128})@[A-Za-z0-9._\[\]-]{1,253}(?::[0-9]{1,5})?")
_QUERY_NAME = re.compile(
    r"[?&;](?:(?i:access[_-]?token|auth[_-]?token|refresh[_-]?token|id[_-]?token|token|api[_-]?key|apikey|access[_-]?key|"
    r"client[_-]?secret|secret|password|passwd|pwd|signature|sig|x-amz-signature|x-amz-security-token|session[_-]?id|key))"
    r"=([A-Za-z0-9%._~+/=-]{8,512})"
)
_PLACEHOLDER_PASSWORDS = word_set("pass password passwd pwd secret token key xxx xxxx xxxxx user username")

_HANDLE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{1,28}[A-Za-z0-9_])(?![A-Za-z0-9_(/@])")
_NOT_HANDLES = word_set(
    "media import param return returns throws see since deprecated override property staticmethod classmethod author "
    "charset font keyframes supports include page test types all here"
)


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses; not `user@host:` prompts, `scp` paths, npm scopes or `image@2x.png`."""
    at = text.find("@")
    while at >= 0:
        span = _email_at(text, at)
        if span:
            yield span
        at = text.find("@", at + 1)


def _email_at(text: str, at: int) -> Span | None:
    backwards = _LOCAL_BACKWARDS.match(text[max(0, at - 66) : at][::-1])
    match = _DOMAIN.match(text, at + 1)
    if not backwards or not match or backwards.end() > 64:
        return None
    local = backwards[0][::-1]
    if local[-1] in ".-=/":
        return None
    # A key before the address ("to=ada@...", "mailto:ada@...", a quote) is not part of it.
    local = re.split(r"[=/'`{|}]", local)[-1].lstrip(".-#*&!$%?^~")
    domain = match[0].rstrip(".-")
    labels = domain.split(".")
    end = at + 1 + len(domain)
    if not local or ".." in local or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        return None
    top = labels[-1].lower()
    if not _TOP_LEVEL.fullmatch(top) or top in _FILE_SUFFIXES or (labels[0].isdigit() and len(labels) > 2):
        return None
    if text[end : end + 1] in ("@", "_") or re.match(r":[^\s0-9,.;:)\"'>\]/]|:[~/$](?!/)|\(", text[end : end + 3]):
        return None  # a shell prompt, an scp path, or code
    known = len(top) == 2 or top in _COMMON_TOP_LEVELS or top.startswith("xn--")
    start = at - len(local)
    score = 1.0 if known else supported(0.4, text, start, _EMAIL_WORDS)
    return Span(start, end, "EMAIL", score)


def find_ips(text: str, public_only: bool) -> Iterator[Span]:
    """IPv4 and IPv6 addresses; not version and section numbers. `public_only`: only those that identify someone."""
    if text.count(".") >= 3:
        for middle in _IPV4_MIDDLE.finditer(text):
            start = middle.start()
            while start and middle.start() - start < 4 and text[start - 1] in "0123456789":
                start -= 1
            match = _IPV4.match(text, start)
            if not match:
                continue
            end = match.end()
            if start and (
                text[start - 1].isalnum() or (text[start - 1] in "._-/\\" and text[start - 3 : start] != "://")
            ):
                continue
            try:
                address = ip_address(match[0])
            except ValueError:
                continue
            # 8.2.4.45 is more often a section or a version.
            if sum(len(part) == 1 for part in match[0].split(".")) >= 3 and not mentioned_near(
                text, start, end, _IP_NEIGHBOURS
            ):
                continue
            if not _NOT_IP_WORDS.isdisjoint(words_before(text, start, 2)) or (
                public_only and not _is_personal(address)
            ):
                continue
            yield Span(start, end, "IP", 0.95)
    after = 0
    for middle in _HEX_GROUP.finditer(text):
        if middle.start() < after:
            continue
        before = _V6_BACKWARDS.match(text[max(0, middle.start() - 45) : middle.start()][::-1])
        start = middle.start() - (before.end() if before else 0)
        forwards = _V6_FORWARDS.match(text, start)
        if not forwards:
            continue
        value = forwards[0].rstrip(".")
        if value.endswith(":") and not value.endswith("::"):
            value = value[:-1]
        end = after = start + len(value)
        after = max(after, middle.end() - 1)
        groups = [group for group in value.split(":") if group]
        if len(groups) < 3 or not any(character.isdigit() for character in value):
            continue
        if (start and (text[start - 1].isalnum() or text[start - 1] in "_:")) or text[end : end + 1].isalnum():
            continue
        try:
            address = IPv6Address(value)
        except ValueError:
            continue
        if not public_only or _is_personal(address):
            yield Span(start, end, "IP", 0.95)


def _is_personal(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and str(address) not in _NAME_SERVERS


def find_macs(text: str) -> Iterator[Span]:
    """Hardware addresses: six pairs of hexadecimal digits with one separator, `:` or `-`."""
    if text.count(":") < 5 and text.count("-") < 5:
        return
    after = 0
    for middle in _MAC_MIDDLE.finditer(text):
        start = middle.start() - 2
        if start < after:
            continue
        match = _MAC.match(text, start)
        if not match or (start and (text[start - 1].isalnum() or text[start - 1] in ":-_")):
            continue
        after = match.end()
        pairs = {match[0][place : place + 2].lower() for place in range(0, 17, 3)}
        if len(pairs) > 1:
            yield Span(start, after, "MAC", 1.0)


def find_url_credentials(text: str) -> Iterator[Span]:
    """`scheme://user:password@host` (the whole of it), and the value of `token=` and its kin in a query string."""
    place = text.find("://")
    while place >= 0:
        scheme = _SCHEME_BACKWARDS.match(text[max(0, place - 20) : place][::-1])
        match = _USER_AND_HOST.match(text, place + 3)
        if scheme and match and match[1].lower() not in _PLACEHOLDER_PASSWORDS and match[1][0] not in "$%{<*[":
            yield Span(place - scheme.end(), match.end(), "URL_CREDENTIALS", 0.95)
        place = text.find("://", place + 3)
    for match in _QUERY_NAME.finditer(text) if "=" in text else ():
        value = match[1]
        if (len(set(value)) > 3 and any(c.isdigit() for c in value)) or len(value) >= 24:
            yield Span(match.start(1), match.end(1), "URL_CREDENTIALS", 0.8)


def find_user_names(text: str) -> Iterator[Span]:
    """`@handle` of at least three characters; not e-mail, decorators, annotations, npm scopes."""
    at = text.find("@")
    while at >= 0:
        match = _HANDLE.match(text, at + 1)
        indent = text[max(0, at - 40) : at].rpartition("\n")[2]
        is_decorator = not indent.strip() and _next_line_is_code(text, at)
        free = at == 0 or not (text[at - 1].isalnum() or text[at - 1] in "_@/.-\\{")
        if match and free and not is_decorator and match[0].lower() not in _NOT_HANDLES and not match[0].isdigit():
            yield Span(at, match.end(), "USER_NAME", 0.6)
        at = text.find("@", at + 1)


def _next_line_is_code(text: str, at: int) -> bool:
    end = text.find("\n", at, at + 200)
    following = text[end + 1 : end + 40].lstrip() if end >= 0 else ""
    return following.startswith(
        ("def ", "class ", "async ", "@", "public ", "private ", "protected ", "static ", "export ")
    )

"""Check digits and check hashes, as pure functions of a value without separators.

They say whether a value can be one; they do not say that it was ever issued.

    luhn("4111111111111111")   # -> True
    iban("GB82WEST12345698765432")   # -> True

Sources: ISO/IEC 7812-1 (Luhn), ISO 13616 and its registry of lengths (IBAN), Bitcoin's base58check, BIP 173 and BIP 350
(bech32 and bech32m).
"""

from hashlib import sha256

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

IBAN_LENGTHS = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29},
    **{"BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29},
    **{"ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28},
    **{"HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20},
    **{"LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19},
    **{"MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29},
    **{"PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24},
    **{"SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20},
    "YE": 30,
}
"""Characters of an IBAN by country, country code and check digits included."""

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32_CONSTANTS = (1, 0x2BC830A3)  # bech32, bech32m


def luhn(digits: str) -> bool:
    """Whether ASCII `digits` pass Luhn's check: every second from the right is doubled, the sum is 0 mod 10."""
    total = sum(map(int, digits[-1::-2])) + sum(_DOUBLED[int(digit)] for digit in digits[-2::-2])
    return total % 10 == 0


def iban(value: str) -> bool:
    """Whether upper-case `value` has its country's length and, with its first four characters last, is 1 mod 97."""
    if IBAN_LENGTHS.get(value[:2]) != len(value) or not value.isascii() or not value.isalnum():
        return False
    return int("".join(str(int(character, 36)) for character in value[4:] + value[:4])) % 97 == 1


def base58check(value: str) -> bool:
    """Whether `value` encodes a version byte and a 20-byte hash whose last 4 bytes are their double SHA-256."""
    number = 0
    for character in value:
        place = _BASE58.find(character)
        if place < 0:
            return False
        number = number * 58 + place
    if number >= 1 << 200:
        return False
    zeros = len(value) - len(value.lstrip("1"))
    if zeros + (number.bit_length() + 7) // 8 != 25:
        return False
    payload = number.to_bytes(25, "big")
    return sha256(sha256(payload[:21]).digest()).digest()[:4] == payload[21:]


def bech32(value: str) -> bool:
    """Whether `value`, in one case, is a bech32 or bech32m string with a valid checksum (BIP 173, BIP 350)."""
    if value not in (value.lower(), value.upper()) or len(value) > 90:
        return False
    prefix, separator, data = value.lower().rpartition("1")
    if not separator or not prefix or len(data) < 6 or any(character not in _BECH32 for character in data):
        return False
    check = 1
    expanded = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    for number in expanded + [_BECH32.index(c) for c in data]:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ number
        for bit, generator in enumerate(_BECH32_GENERATOR):
            if top >> bit & 1:
                check ^= generator
    return check in _BECH32_CONSTANTS

"""Personal data by pattern and check digit, replaced by typed placeholders such as [EMAIL].

Patterns alone find too much: card numbers must pass Luhn's check, IBANs theirs modulo 97, addresses
of machines must parse, numbers of persons must be ones that are given out. What is found is counted
by kind and never written anywhere.
"""

import ipaddress
import re

from jaxllm.config import ConfigError
from jaxllm.corpus import people

POLICIES = ("off", "mask", "drop")

_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}\b"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?\b")
_CARD = re.compile(r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d-]|\.\d)")
# Not a heading's number: at the start of a line, before a capital letter; nor a version's.
_IP4 = re.compile(
    r"(?<![\w.])(?<!Chapter )(?<!Section )(?<!ersion )"
    r"(?!(?<![^\n])(?:\d{1,3}\.){3}\d{1,3}\.?[ \t]+[A-Z])"
    r"(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"
)
_IP6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_PHONE = re.compile(
    r"""(?<![\w.+/-])(?<!\d[ ])(?:
        (?:\+|00)[1-9]\d{0,2}[ .\-]?(?:\(\d{1,4}\)[ .\-]?)?\d{1,5}(?:[ .\-]?\d{2,5}){1,5}
      | (?:1[ .\-])?\([2-9]\d{2}\)[ .\-]?\d{3}[ .\-]\d{4}
      | (?:1[ .\-])?[2-9]\d{2}[ .\-][2-9]\d{2}[ .\-]\d{4}
      | \(?0[1-9]\d{0,3}\)?(?:/\d{5,8}|[ /\-]\d{2,5}(?:[ \-]\d{2,5}){1,3})
    )(?![\w]|[.\-]\d)""",
    re.X,
)
_SSN = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_NINO = re.compile(
    r"\b(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b"
)
_DNI = re.compile(r"\b[XYZ]?\d{7,8}-?[A-HJ-NP-TV-Z]\b")
_FISCAL = re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]\b")
_CPF = re.compile(r"(?<!\d)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)")

# Lengths of IBANs by country (the IBAN registry, SWIFT).
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BR": 29, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20,
    "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18,
    "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "JO": 30,
    "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24,
    "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28,
    "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip


def luhn(digits):
    """Whether a string of digits passes Luhn's check (ISO/IEC 7812)."""
    doubled = [int(d) * 2 if i % 2 else int(d) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


# First digits and lengths of the numbers that issuers give out (ISO/IEC 7812).
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}"
)


def _is_card(found):
    digits = re.sub(r"\D", "", found)
    return _ISSUED.fullmatch(digits) is not None and luhn(digits)


def _is_iban(found):
    text = re.sub(r"[ -]", "", found)
    if _IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    number = "".join(str(int(c, 36)) for c in text[4:] + text[:4])
    return int(number) % 97 == 1


def _is_address(found):
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    # "::" and "1::" are code more often than machines.
    return address.version == 4 or found.count(":") >= 3


def _is_phone(found):
    return 8 <= sum(c.isdigit() for c in found) <= 15


def _is_dni(found):
    text = found.replace("-", "")
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return len(text) == 9 and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


def _is_cpf(found):
    digits = [int(c) for c in found if c.isdigit()]

    def check(n):
        total = sum(d * w for d, w in zip(digits[:n], range(n + 1, 1, -1), strict=True))
        return total * 10 % 11 % 10 == digits[n]

    return len(set(digits)) > 1 and check(9) and check(10)


def _always(found):
    return True


# kind: (what a text must hold to be looked at, pattern, check), in the order they are replaced.
KINDS = {
    "EMAIL": ("@", _EMAIL, _always),
    "IBAN": ("", _IBAN, _is_iban),
    "CARD": ("", _CARD, _is_card),
    "NATIONAL_ID": ("", _SSN, _always),
    "NATIONAL_ID (GB)": ("", _NINO, _always),
    "NATIONAL_ID (ES)": ("", _DNI, _is_dni),
    "NATIONAL_ID (IT)": ("", _FISCAL, _always),
    "NATIONAL_ID (BR)": ("", _CPF, _is_cpf),
    "IP": (".", _IP4, _is_address),
    "IP (6)": (":", _IP6, _is_address),
    "PHONE": ("", _PHONE, _is_phone),
}
_DIGIT = re.compile(r"\d")


def mask(text):
    """Returns (the text with placeholders, {kind: how many})."""
    counts = {}
    digits = _DIGIT.search(text) is not None
    for name, (needed, pattern, check) in KINDS.items():
        kind = name.partition(" ")[0]
        if (needed and needed not in text) or (kind not in ("EMAIL", "IP") and not digits):
            continue

        def replace(match, check=check, kind=kind):
            if not check(match[0]):
                return match[0]
            counts[kind] = counts.get(kind, 0) + 1
            return f"[{kind}]"

        text = pattern.sub(replace, text)
    return text, counts


def make(section):
    """Returns a stage that masks personal data, or drops documents that hold any.

    Args:
        section: {"policy": "off", "mask" or "drop", "sources": {source: its own policy},
            "entities", "model": of `people`}.

    Raises:
        ConfigError: an unknown policy.
    """
    policy_of, mask_all = _policies(section), _masker(section)

    def stage(documents, report):
        left = []
        for document in documents:
            policy = policy_of(document.source)
            if policy == "off":
                left.append(document)
                continue
            text, counts = mask_all(document.text)
            for kind, count in counts.items():
                report.counts[kind] += count
            if counts and policy == "drop":
                report.drop(f"holds {min(counts)}", document, shown=False)
                continue
            if counts:
                report.changed.update(dict.fromkeys(counts, 1))
                document = document._replace(text=text, notes=document.notes | {"masked": counts})
            left.append(document)
        return left

    return stage


def shown(section):
    """Returns a function of a document: its text as an example may show it, masked unless off.

    Args:
        section: as `make` takes it.
    """
    policy_of, mask_all = _policies(section), _masker(section)
    return lambda one: one.text if policy_of(one.source) == "off" else mask_all(one.text)[0]


def _masker(section):
    """Returns a function of a text: (the text with placeholders, {kind: how many})."""
    if not section.entities:
        return mask
    mask_people = people.make(tuple(section.entities), section.model)

    def mask_all(text):
        text, counts = mask(text)
        text, more = mask_people(text)
        return text, counts | more

    return mask_all


def _policies(section):
    """Returns a function of a source's name: its policy."""
    policies = dict(section.sources)
    for name, policy in (("policy", section.policy), *policies.items()):
        if policy not in POLICIES:
            raise ConfigError(
                f"config.privacy: {name}={policy!r} is unknown. Known: {', '.join(POLICIES)}.\n"
                f"  Try --config.privacy.policy=mask."
            )
    return lambda source: policies.get(source, section.policy)

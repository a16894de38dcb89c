"""Words for people."""

from collections.abc import Mapping
from typing import Any


def counted(number: int, noun: str, plural: str = "") -> str:
    """As ``1 eye``, ``1,200 eyes``.

    Args:
        noun: in the singular.
        plural: where it is not the noun and an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def scans_of(counts: Mapping[str, Any], which: str = "") -> str:
    """As ``120 scans of 1 patient`` or, of ``which``, ``120 validation scans of 1 patient``.

    Args:
        counts: with "scans" and "patients".
    """
    return f"{counted(counts['scans'], f'{which} scan'.lstrip())} of {counted(counts['patients'], 'patient')}"

"""Formats: routers on disk for other programs, and from them. What is written is loaded again and compared first.

One format is one file with a :class:`Format`, and one line of the registry.
"""

from routerjax.errors import VerificationError
from routerjax.formats.format import (
    FORMATS,
    Format,
    ReadableFormat,
    WritableFormat,
    export,
    find_format,
    read,
    register_format,
)

__all__ = [
    "FORMATS",
    "Format",
    "ReadableFormat",
    "VerificationError",
    "WritableFormat",
    "export",
    "find_format",
    "read",
    "register_format",
]

"""What is written is compared with the router before it gets its name; this is what happens if it differs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NoReturn

from routerjax.errors import VerificationError


def reject(folder: Path, path: Path, reason: str) -> NoReturn:
    """Keep ``folder`` as ``PATH.rejected`` (or, where that is taken, ``PATH.rejected.2`` ...) and raise.

    Raises:
        VerificationError: always; says why, and where it is kept.
    """
    names = itertools.chain([f"{path.name}.rejected"], (f"{path.name}.rejected.{n}" for n in itertools.count(2)))
    kept = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    folder.rename(kept)
    raise VerificationError(f"what was written does not do what the router does: {reason}; it is kept as {kept}")

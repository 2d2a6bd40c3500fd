"""Description of a router in ``router.json``, with the type and the range of each field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from routerjax.config import AttributeValue
from routerjax.errors import InputError
from routerjax.families import family_of
from routerjax.pretrained import find_file, read_json
from routerjax.router.router import Router
from routerjax.sealing import seal, unseal
from routerjax.validation import from_json

FORMAT = "routerjax-router-5"
FILE = "router.json"
CHANGES = (
    "copy the folder again, or make the change by routerjax: another pair of models by --strong and --weak of "
    "calibrate, score or export, a threshold by calibrate --strong-share or score --threshold, all else by train or "
    "import"
)


@dataclass(frozen=True, kw_only=True)
class RouterDescription:
    """Description of a router: all but its tensors and its featurizer's files, of which it has the hashes.

    Attributes:
        family: name of the module's, and ``attributes`` of the module; see :class:`routerjax.families.Family`.
        models, provenance: as in :class:`routerjax.router.Router`.
        policy: see :meth:`routerjax.policies.Policy.to_dict`.
        likelihood: see :meth:`routerjax.likelihoods.Likelihood.to_dict`.
        featurizer: see :meth:`routerjax.features.Featurizer.to_dict`.
        tensors_sha256: of the file of tensors.
        files_sha256: of each of the featurizer's files, by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    family: str
    attributes: Mapping[str, AttributeValue]
    likelihood: Mapping[str, object]
    models: tuple[str, ...]
    policy: Mapping[str, object]
    featurizer: Mapping[str, object]
    tensors_sha256: str
    files_sha256: Mapping[str, str]
    provenance: Mapping[str, object]


def describe_router(router: Router, *, tensors_sha256: str) -> RouterDescription:
    """Describe a router whose tensors have that hash.

    Raises:
        InputError: its module is of no registered family, or not as the family makes it.
    """
    family = family_of(router.module)
    if family is None:
        raise InputError(
            f"{router.family} is of no registered family, so no folder could be loaded: "
            "routerjax.families.register_family makes it known"
        )
    attributes = family.attributes_of(router.module)
    num_outputs = len(router.likelihood.output_names(router.models))
    made = family.make_module(num_outputs=num_outputs, attributes=attributes, featurizer=router.featurizer)
    if made != router.module:
        raise InputError(
            f"the module is not the one that the family {family.name} makes of its attributes, its featurizer and "
            f"{num_outputs} outputs, so a folder would hold another: expected {made!r:.200}, got {router.module!r:.200}"
        )
    return RouterDescription(
        family=family.name,
        attributes=attributes,
        likelihood=router.likelihood.to_dict(),
        models=router.models,
        policy=router.policy.to_dict(),
        featurizer=router.featurizer.to_dict(),
        tensors_sha256=tensors_sha256,
        files_sha256={name: hashlib.sha256(content).hexdigest() for name, content in router.featurizer.files.items()},
        provenance=dict(router.provenance),
    )


def write_description(description: RouterDescription, folder: Path) -> None:
    """Write ``router.json``, with the hash of its own content.

    Raises:
        InputError: provenance that is no JSON.
    """
    fields = {field.name: getattr(description, field.name) for field in dataclasses.fields(description)}
    text = json.dumps(seal({"format": FORMAT, **fields}), indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_description(folder: Path) -> RouterDescription:
    """Read ``router.json``.

    Raises:
        InputError: no such file, not JSON, of another format, changed since it was written, or a field of another type
            or out of range.
    """
    path = folder / FILE
    if find_file(path) is None:
        if not folder.exists():
            raise InputError(f"no router {folder}: expected a router's folder, or a run's")
        what = "is"
        if (folder / "bundle.json").exists():
            what = "is a bundle, which its routerjax_runtime.py scores with, and"
        elif (folder / "training").is_dir():
            what = "is a run that has not ended (train --resume goes on with it), and"
        raise InputError(f"{folder} {what} not a router folder: no {FILE} in it")
    content = read_json(path, dict)
    if content.get("format") != FORMAT:
        got = f"{content.get('format')!r:.40}"
        raise InputError(
            f"{path}: expected format {FORMAT!r}, got {got}: routerjax of another version wrote it; train, import or "
            "get the router again"
        )
    fields = unseal(content, path, CHANGES)
    del fields["format"]
    try:
        return from_json(fields, RouterDescription, FILE)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error

"""Routers on disk for other programs: what is written is loaded again and compared before it counts as written."""

from collections.abc import Callable, Mapping

from routerjax.errors import VerificationError
from routerjax.formats.hf import export_hf, import_hf
from routerjax.formats.routellm import export_routellm, import_routellm_bert, import_routellm_mf, import_routellm_sw
from routerjax.formats.stablehlo import export_stablehlo, golden_prompts
from routerjax.router import Router

IMPORTERS: Mapping[str, Callable[..., Router]] = {
    "routellm-mf": import_routellm_mf,
    "routellm-sw": import_routellm_sw,
    "routellm-bert": import_routellm_bert,
    "hf": import_hf,
}
"""Name of a format -> ``(source, *, strong, weak) -> Router``."""

__all__ = [
    "IMPORTERS",
    "VerificationError",
    "export_hf",
    "export_routellm",
    "export_stablehlo",
    "golden_prompts",
    "import_hf",
    "import_routellm_bert",
    "import_routellm_mf",
    "import_routellm_sw",
]

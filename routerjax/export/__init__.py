"""Routers for serving: what is written is loaded again and compared before it counts as written."""

from routerjax.errors import VerificationError
from routerjax.export.bundle import export_stablehlo, golden_prompts
from routerjax.export.hf import export_hf
from routerjax.export.routellm import export_routellm

__all__ = ["VerificationError", "export_hf", "export_routellm", "export_stablehlo", "golden_prompts"]

"""Routers for serving: each bundle is re-loaded in a fresh process and compared before it counts as written."""

from routerjax.export.bundle import VerificationError, export_stablehlo, golden_prompts

__all__ = ["VerificationError", "export_stablehlo", "golden_prompts"]

"""The former name of :mod:`routerjax.policies`, for a release."""

from routerjax.policies import require_share, route, route_by_cost, threshold_for_share

__all__ = ["require_share", "route", "route_by_cost", "threshold_for_share"]

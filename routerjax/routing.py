"""The former name of :mod:`routerjax.policies`, for a release."""

from routerjax.policies import *  # noqa: F403

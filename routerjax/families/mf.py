"""Matrix factorisation."""

from routerjax.families.family import Family, register_family
from routerjax.models import MatrixFactorization

MF = register_family(Family(name="mf", module=MatrixFactorization))

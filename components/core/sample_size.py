"""How many independent groups of rows a difference must be seen on before anything can be decided."""

import math

LEAST = 10
"""Below this, tails of a studentised bootstrap cannot be trusted, whatever the confidence."""


def groups_needed(tail: float) -> int:
    """The fewest groups with which anything can be decided at the tail probability `tail`.

    Where all of n paired differences point one way, chance does that in 2^-n of cases (sign test); a tail smaller than
    that cannot be known from n groups.
    """
    return max(LEAST, math.ceil(-math.log2(tail)))

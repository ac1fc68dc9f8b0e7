"""How many independent groups of rows are needed before a difference can be judged at all."""

import math

MIN_GROUPS = 10
"""Whatever the confidence. Of n groups there are C(2n - 1, n) different draws with replacement: 92,378 of 10, but 126
of 5, which are too few for the tail of a bootstrap.
"""


def groups_needed(tail: float) -> int:
    """The fewest groups from which a bound with the error probability `tail` can be told.

    Under the sign test, n paired differences that are as likely above as below 0 all have one sign, chosen beforehand,
    with probability 2^-n. No outcome of n groups is rarer than that by chance alone, so 2^-n must not exceed `tail`.
    """
    return max(MIN_GROUPS, math.ceil(-math.log2(tail)))

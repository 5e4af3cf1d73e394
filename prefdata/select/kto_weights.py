"""How much rows of each class count, from how many there are. Pure.

KTO's paper (Ethayarajh et al. 2024, arXiv:2402.01306) wants desirable_weight n_desirable / (undesirable_weight
n_undesirable) in [1, 3/2], in its first version in [1, 4/3], and one of the two weights left at 1.
"""

LEAST, MOST = 1.0, 1.5


def class_weights(desirable: float, undesirable: float, ratio: float = 1.0) -> tuple[float, float]:
    """The weights of desirable and of undesirable rows, the rarer class's above 1.

    desirable, undesirable: the rows of each class, or the sums of the weights that they have already. ratio: what the first
    class shall count together, over the second. Both are 1 where a class has no rows: there is nothing to balance.
    """
    if not (desirable > 0 and undesirable > 0):
        return 1.0, 1.0
    wanted = ratio * undesirable / desirable
    return (wanted, 1.0) if wanted >= 1 else (1.0, 1 / wanted)

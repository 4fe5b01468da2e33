"""Events on which the arms differ, and the exact test whether that goes both ways alike."""

from scipy.stats import binomtest


def mcnemar_p(lost: int, won: int) -> float:
    """Return the p-value of McNemar's exact test of paired events [1]_.

    Parameters
    ----------
    lost, won : int
        Events that turned from right to wrong, and from wrong to right.

    Returns
    -------
    float
        Two-sided: the chance of a split at least as uneven, were each differing event as likely to
        be lost as to be won; 1 when none differs.

    Notes
    -----
    The conditional exact test is taken and not its mid-p form, whose error rate may exceed the
    nominal one: this judge errs towards "not shown". It supposes independent events, and a large
    p-value is no proof that nothing is lost. So it stands beside the bound and decides nothing.

    References
    ----------
    .. [1] Q. McNemar, "Note on the sampling error of the difference between correlated
       proportions or percentages", Psychometrika 12, 1947.
    """
    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0

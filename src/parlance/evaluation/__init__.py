"""Numbers you can trust.

- `statistics`: `bootstrap_interval`, `win_rate`, `pairwise_accuracy`, `paired_difference_interval`, `distinct_ratio`
"""

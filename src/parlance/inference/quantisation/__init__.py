"""Weights as small integers: the nearest ones, those that a text says are best, and the folder they are written to.

- `rounding`: a matrix to the nearest integers
- `calibrated`: integers that keep what the matrices compute on a text
- `quantise`: a checkpoint folder to a quantised one, with what it costs in bits per byte
"""

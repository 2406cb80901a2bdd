"""Byte-pair encoding of our own: pieces of text, their counts, training and encoding, in compiled loops.

    from parlance.text.bpe.training import train            # texts -> tokens by rank, those of rustbpe
    from parlance.text.bpe.encoding import Encoder          # texts -> ids, those of tiktoken
    from parlance.text.bpe.counting import count_pieces, merge_counts    # counting apart, 64 bits
    from parlance.text.bpe.patterns import PATTERNS, split  # where text is cut

Importing these loads no numba; the first call of each compiles its loops (a few seconds) and keeps them on disk.
"""

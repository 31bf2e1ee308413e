"""Permutations of records, one an epoch, drawn all at once.

They are those of grain's `MapDataset.shuffle`, on which reproduced numbers depend, but
grain gives one entry a call, which takes longer than all the rest of planning. Only of
2^k + 1 records, k even and at least 16, grain draws one twice and leaves out another.
NumPy only.

Source: the Simon cipher, eprint 2013/404 section 3.2, of four rounds, walked in cycles
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method 2).
"""

import numpy as np

ROUNDS = 4
LEAST_BITS = 16  # of a block, which has two words
MASK = 0xFFFFFFFF


def _scrambled(value: int) -> int:
    return (value ^ (value >> 27)) & MASK


def round_keys(seed: int) -> list[int]:
    """Spreads a seed over the keys of the rounds.

    Source: C++11 [rand.util.seedseq], `generate` of 4 numbers from one.
    """
    size, near, far = ROUNDS, 1, 2
    state = [0x8B8B8B8B] * size
    for k in range(size):
        here, behind, ahead = k, (k + near) % size, (k + far) % size
        mixed = state[here] ^ state[behind] ^ state[k - 1]
        first = 1664525 * _scrambled(mixed) & MASK
        added = 1 if k == 0 else k + (seed if k == 1 else 0)
        second = (first + added) & MASK
        state[behind] = (state[behind] + first) & MASK
        state[ahead] = (state[ahead] + second) & MASK
        state[here] = second
    for k in range(size):
        here, behind, ahead = k, (k + near) % size, (k + far) % size
        summed = (state[here] + state[behind] + state[k - 1]) & MASK
        third = 1566083941 * _scrambled(summed) & MASK
        fourth = (third - k) & MASK
        state[behind] ^= third
        state[ahead] ^= fourth
        state[here] = fourth
    return state


def encrypted(bits: int, keys: list[int]) -> np.ndarray:
    """Permutes all numbers of an even number of bits: u32[2^bits]."""
    word = bits // 2
    mask = np.uint32(2**word - 1)

    def turned(x: np.ndarray, by: int) -> np.ndarray:
        return ((x << np.uint32(by)) | (x >> np.uint32(word - by))) & mask

    values = np.arange(2**bits, dtype=np.uint32)
    left, right = values >> np.uint32(word), values & mask
    for key in keys:
        mixed = (turned(right, 1) & turned(right, 8)) ^ turned(right, 2)
        left, right = right, left ^ mixed ^ (np.uint32(key) & mask)
    return (left << np.uint32(word)) | right


def permutation(size: int, seed: int) -> np.ndarray:
    """Permutes 0 … size − 1: u32[size].

    Args:
      size: number of records, at least 1.
      seed: 32 bits.
    """
    if size == 1:
        return np.zeros(1, np.uint32)
    bits = max(LEAST_BITS, (size - 1).bit_length())
    after = encrypted(bits + bits % 2, round_keys(seed))
    while (after[:size] >= size).any():  # walk on, twice as far each time
        after = np.where(after < size, after, after[after])
    return after[:size]


def epochs(size: int, count: int, seed: int, source: int = -1) -> np.ndarray:
    """Concatenates the permutations of `count` epochs: u32[count · size].

    Args:
      size: number of records.
      count: of epochs.
      seed: of the run.
      source: which of a mixture's sources the records are of; −1 = of no mixture.
    """
    made_of = [seed, 1, *([source] if source >= 0 else [])]
    first = int(np.random.SeedSequence(made_of).generate_state(1)[0])
    drawn = [permutation(size, (first + epoch) & MASK) for epoch in range(count)]
    return np.concatenate(drawn)

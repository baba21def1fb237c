"""Seeds as a pure function of what they are for: (seed, step, micro-batch, rank) -> one 64-bit number.

Sums and products of small integers collide ((1, 2) and (2, 1) would draw alike); this chains the splitmix64 finalizer
over the values in order. Exact integer arithmetic, the same on every machine and version.
"""

_MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """One step of Steele, Lea and Flood's splitmix64: a bijection of 64-bit integers that scatters neighbours."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix(*values: int) -> int:
    """A 64-bit number that depends on every value and on their order."""
    state = len(values)
    for value in values:
        state = splitmix64(state ^ splitmix64(value & _MASK))
    return state

"""Symbols of an alignment: tokens, complements, and what is refused."""

from __future__ import annotations

import numpy as np

__all__ = ["BASES", "GAP_ID", "MASK_ID", "VOCABULARY", "encode", "reverse_complement"]

VOCABULARY = "-ACGT?"
"""Token of each symbol is its position: gap or unknown, four bases, hidden. That of the published GPN-MSA."""

BASES = "ACGT"
GAP_ID = VOCABULARY.index("-")
MASK_ID = VOCABULARY.index("?")
_AMBIGUOUS = "NRYSWKMBDHV.*"
_COMPLEMENTS = {"A": "T", "C": "G", "R": "Y", "K": "M", "B": "V", "D": "H"}
_UNKNOWN = 255


def _token_table() -> np.ndarray:
    table = np.full(256, _UNKNOWN, dtype=np.uint8)
    for symbol in _AMBIGUOUS:
        table[[ord(symbol), ord(symbol.lower())]] = GAP_ID
    for token, symbol in enumerate(VOCABULARY[:-1]):
        table[[ord(symbol), ord(symbol.lower())]] = token
    return table


def _complement_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    for one, other in _COMPLEMENTS.items():
        for a, b in ((one, other), (one.lower(), other.lower())):
            table[ord(a)], table[ord(b)] = ord(b), ord(a)
    return table


_TOKENS, _COMPLEMENT = _token_table(), _complement_table()


def _codes(symbols: np.ndarray) -> np.ndarray:
    """View bytes of one character, or their ASCII codes, as uint8."""
    symbols = np.asarray(symbols)
    if symbols.dtype.kind == "S" and symbols.dtype.itemsize == 1:
        return np.ascontiguousarray(symbols).view(np.uint8)
    if symbols.dtype == np.uint8:
        return symbols
    raise TypeError(
        f"Symbols of an alignment are bytes of one character (dtype 'S1') or their ASCII codes (uint8), got dtype {symbols.dtype}."
    )


def encode(symbols: np.ndarray) -> np.ndarray:
    """Turn symbols into tokens.

    Parameters
    ----------
    symbols
        Bytes (dtype ``S1``) or ASCII codes (uint8) of any shape. Case does not matter; ``N``, other ambiguity codes, ``.``
        and ``*`` become the gap token, as in GPN-MSA.

    Returns
    -------
    uint8 of the same shape, positions in ``VOCABULARY``.

    Raises
    ------
    ValueError
        If a symbol belongs to no nucleotide alphabet.
    TypeError
        If the array holds something else than symbols.
    """
    codes = _codes(symbols)
    tokens = _TOKENS[codes]
    if codes.size and int(tokens.max()) == _UNKNOWN:
        wrong = [chr(code) for code in np.unique(codes[tokens == _UNKNOWN])[:8]]
        raise ValueError(
            f"The alignment holds symbols that are no nucleotides: {wrong}. Expected A, C, G, T, '-', N or another IUPAC code, "
            "in either case, as ASCII."
        )
    return tokens


def reverse_complement(symbols: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Read symbols from the other strand; case is kept, and twice is the identity.

    Parameters
    ----------
    symbols
        Bytes (dtype ``S1``) or ASCII codes (uint8).
    axis
        Axis of the positions.

    Returns
    -------
    Array of the same shape and dtype.
    """
    codes = _COMPLEMENT[np.flip(_codes(symbols), axis=axis)]
    return codes if np.asarray(symbols).dtype == np.uint8 else codes.view("S1")

"""Symbols of an alignment, their tokens and complements."""

from __future__ import annotations

import numpy as np

__all__ = ["BASES", "BASE_TOKENS", "GAP_ID", "MASK_ID", "VOCABULARY", "encode", "reverse_complement"]

VOCABULARY = "-ACGT?"
"""Symbols in the order of their tokens: gap or unknown, four bases, mask. The vocabulary of the published GPN-MSA."""

BASES = "ACGT"
BASE_TOKENS = slice(VOCABULARY.index(BASES[0]), VOCABULARY.index(BASES[-1]) + 1)
GAP_ID = VOCABULARY.index("-")
MASK_ID = VOCABULARY.index("?")
_AMBIGUOUS = "NRYSWKMBDHV.*"
_COMPLEMENTS = {"A": "T", "C": "G", "R": "Y", "K": "M", "B": "V", "D": "H"}
_INVALID = 255


def _token_table() -> np.ndarray:
    table = np.full(256, _INVALID, dtype=np.uint8)
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
    """View one-character bytes, or their ASCII codes, as uint8."""
    symbols = np.asarray(symbols)
    if symbols.dtype.kind == "S" and symbols.dtype.itemsize == 1:
        return np.ascontiguousarray(symbols).view(np.uint8)
    if symbols.dtype == np.uint8:
        return symbols
    raise TypeError(
        "Symbols of an alignment must be one-character bytes (dtype 'S1') or their ASCII codes (uint8), "
        f"got dtype {symbols.dtype}."
    )


def encode(symbols: np.ndarray) -> np.ndarray:
    """Convert symbols to tokens.

    Parameters
    ----------
    symbols
        Bytes (dtype ``S1``) or ASCII codes (uint8) of any shape. Case is ignored; ``N``, other ambiguity codes, ``.``
        and ``*`` become the gap token, as in GPN-MSA.

    Returns
    -------
    uint8 of the same shape, indices into ``VOCABULARY``.

    Raises
    ------
    ValueError
        If a symbol is not in the IUPAC nucleotide alphabet.
    TypeError
        If the array does not hold symbols.
    """
    codes = _codes(symbols)
    tokens = _TOKENS[codes]
    if codes.size and int(tokens.max()) == _INVALID:
        wrong = [chr(code) for code in np.unique(codes[tokens == _INVALID])[:8]]
        raise ValueError(
            f"The alignment contains symbols that are not nucleotides: {wrong}. Expected A, C, G, T, '-', N or another "
            "IUPAC code, in either case, as ASCII."
        )
    return tokens


def reverse_complement(symbols: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Return the symbols of the other strand, in the same case.

    Parameters
    ----------
    symbols
        Bytes (dtype ``S1``) or ASCII codes (uint8).
    axis
        Axis of the positions.
    """
    codes = _COMPLEMENT[np.flip(_codes(symbols), axis=axis)]
    return codes if np.asarray(symbols).dtype == np.uint8 else codes.view("S1")

"""Masked language models of DNA over whole-genome alignments, and scores of variants."""

__all__: list[str] = []

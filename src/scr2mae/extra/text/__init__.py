"""Masked language models of text: RoBERTa."""

__all__: list[str] = []

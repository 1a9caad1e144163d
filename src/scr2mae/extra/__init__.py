"""Backbones for DNA, images and text, on the masking objects, curriculum and training plan of the cells.

They have the same verbs: ``pretrain``, ``embed`` and ``score`` take a network and data, and images and text also
have ``finetune``. Training returns the network, with ``history_`` and ``runs_``; networks are saved by
``save_pretrained`` and loaded by ``from_pretrained``.

Images and text need optional dependencies: ``scr2mae[vision]``, ``scr2mae[text]``, or ``scr2mae[extra]`` for both. Importing this package loads none of them.
"""

from scr2mae._utils.lazy import lazy_names

__all__ = ["dna", "text", "vision"]

__getattr__, __dir__ = lazy_names(__name__, modules=__all__)

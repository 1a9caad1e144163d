"""Networks for DNA, images and text, which share masking, curricula and the training plan with the model of cells.

Each has the functions ``pretrain``, ``embed`` and ``score`` of a network and data; images and text also have
``finetune``. Training returns the network, with ``history_`` and ``runs_``. ``save_pretrained`` saves
networks, and ``from_pretrained`` loads them.

Images and text need optional dependencies: ``scr2mae[vision]``, ``scr2mae[text]``, or ``scr2mae[extra]`` for both. They
are imported on first use.
"""

from scr2mae._utils.lazy import lazy_names

__all__ = ["dna", "text", "vision"]

__getattr__, __dir__ = lazy_names(__name__, modules=__all__)

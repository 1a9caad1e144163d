"""Masked autoencoders of images: MLP, U-Net and vision transformer."""

__all__: list[str] = []

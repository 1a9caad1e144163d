"""Layers, negative binomial likelihood, curriculum and the network itself."""

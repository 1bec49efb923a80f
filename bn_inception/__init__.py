"""Batch Normalization (Ioffe and Szegedy, 2015) and its Inception experiments in JAX and Flax."""

"""Predefined sparsity: exact densities, patterns, layers that store exactly |W| values."""

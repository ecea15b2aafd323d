"""Axes of tensors as expressions over factors, and folds over them: sizes, kept indices, masks,
coordinates, and the lift of encode and decode matrices.
"""

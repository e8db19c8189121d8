"""Checkpoints: the files of the published ones, and what builds them."""

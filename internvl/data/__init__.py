"""Training data: formats, sampling, rendering, dynamic resolution, packing."""

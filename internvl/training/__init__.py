"""Training code of this repository: the demo checkpoint (``internvl.training.demo``) first."""

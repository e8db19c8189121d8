"""Metrics of the report's benchmarks: pure functions, and the `Metric` objects made of them.

    >>> from internvl.evaluation.metrics.anls import anls
    >>> anls("10 m", ["10m"])
    0.75

Each module is a family; its functions name the peer whose rule they are and, where peers differ,
take `peer`. Three rules hold for all of them: nothing is random, an empty answer never scores, and
no text of a model is run as code. `internvl.evaluation.scoring` has the registry.
"""

"""How fast fastconv is: against the machine's limits, against other libraries, on real layers and real photographs.

``python -m benchmarks`` runs the main job; ``python -m benchmarks --help`` lists the others. ``pytest benchmarks``
runs the same measurements as pytest-benchmark suites. Both take what they measure from fastconv's registry, its
network tables and `benchmarks.peers`, so an algorithm, a layer or a peer that is added there shows up here.
"""

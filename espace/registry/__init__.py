"""How parts are found: hooks, the registry that calls them, signatures as schemas of options, scaffolds of plugins.

It knows names and factories; what a part does is in `contracts.py`, and the parts themselves are in `parts/`.
"""

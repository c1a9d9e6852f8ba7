"""A deterministic simulator of a whole hive: the engine's own code, thousands of nodes, years, under a virtual clock.

What is real: the engine's store on LMDB, the pool's states of nodes, reader, writer, selector, verifier, repair, leases,
garbage collection, the code and all hashes. What is not: nodes (nodes.py: a table of shares that answers as a node does,
with every fault a node can have), streams, and time. The same seed gives the same trace, byte for byte.
"""

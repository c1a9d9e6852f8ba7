"""A disk for crash tests: it records what is asked of it, and says in which states a power cut may leave it.

    events.py    what a disk is asked to do, as values and as bytes
    server.py    a file system in memory, in a process of its own, that records and can fail (FUSE)
    recorder.py  the other end: mounts it, takes the record, arms failures
    crash.py     from a record to the states after a power cut (pure)

A mounted file system sees the writes of LMDB's C code too, which nothing inside the process would.
"""

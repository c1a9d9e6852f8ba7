"""The benchmark: a drive against an in-memory pyfuse3 file system and against its peers, in one run (docs/performance.md).

    targets.py drive.py peers.py gluster.py all_peers.py   what is measured: started, settled, stopped
    workloads.py tools.py          what is done on each of them, file by file the same (sources.py makes the inputs)
    rounds.py                      the alternation: every workload on every target, in turn, in bounded children
    hive_figures.py ssl_loopback.py what only a hive has: placing, cold reads, latency while placing, memory
    table.py                       medians, ratios, JSON

Everything that is read back is compared with what was written. Every wait is bounded, and what was started is stopped.
"""

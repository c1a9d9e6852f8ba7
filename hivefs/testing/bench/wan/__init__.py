"""The drive over a link with delay, loss and a rate: ``scripts/bench --wan`` (docs/performance.md).

lane.py       one direction of a link, as a function of time
emulator.py   a process: two network namespaces, joined through TUN devices by two lanes
link.py       starting and ending that process, and starting others inside its namespaces
plain_tcp.py  what the kernel's TCP and trio.SSLStream reach over the link: the emulator is judged by it
hive.py       real nodes in the far namespace; engine and mount in the near one
packets.py    where the time of one read went, by the packets of the link
figures.py    the rows
"""

"""Finding nodes of one's own hive on the local network; the only door to zeroconf."""

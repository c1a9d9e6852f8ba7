"""A storage node: it keeps shares that it cannot read for vaults of its hive, and gives them back. See
docs/formats/node.md for its directory and docs/formats/protocol.md for its conversation.
"""

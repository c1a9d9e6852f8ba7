"""``python -m hivefs``, and what the command ``hivefs`` begins with."""


def main() -> None:
    """Load the command, which Ctrl-C may end at any moment, and run it."""
    from hivefs.cli.early import Loading

    with Loading():
        from hivefs.cli.main import main as command
    command()


if __name__ == "__main__":
    main()

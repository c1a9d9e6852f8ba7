"""``python -m hivefs``: the same as the command ``hivefs``."""

from hivefs.cli.main import main

if __name__ == "__main__":
    main()

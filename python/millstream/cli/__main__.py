"""``python -m millstream.cli``: the same as ``millstream``."""

from millstream.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m cornerstone` is the command `cornerstone`."""

from __future__ import annotations

from cornerstone.cli import main

if __name__ == "__main__":
    main()

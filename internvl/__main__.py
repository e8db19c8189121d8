"""`python -m internvl` is the command line."""

from __future__ import annotations

from internvl.cli import main

if __name__ == "__main__":
    main()

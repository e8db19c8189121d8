"""`python -m internvl.app`, the same as `python -m internvl app`."""

from __future__ import annotations

import typer

from internvl.app.commands import app

if __name__ == "__main__":
    typer.run(app)

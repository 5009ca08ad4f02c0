"""`python -m service.cli`: the `hatrack` command."""

from __future__ import annotations

from service.cli.main import main

if __name__ == "__main__":
    main()

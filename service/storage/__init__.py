"""What a home holds on disk: backups, restoring them, removing what nothing names, and how long records are kept."""

from typing import Final

GRACE_S: Final = 24 * 3600.0
"""How long `hatrack gc` leaves what nothing names: an upload that goes on has no name yet."""

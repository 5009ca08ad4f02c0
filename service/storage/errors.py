"""Why a backup cannot be made, read or restored. For the person at the terminal; none of them reaches a client.

BackupError
├── BackupDamaged     a member is missing, cut off or other than its digest says
├── BackupNewer       a newer release wrote it
├── TargetNotEmpty    the home to restore into, or the database to move into, holds state already
└── NoRoom            the disk is full
"""

from __future__ import annotations

from typing import ClassVar


class BackupError(Exception):
    """The message says what is wrong, where, and what to do; ``code`` is for scripts."""

    code: ClassVar[str] = "backup_failed"


class BackupDamaged(BackupError):
    """A member is missing, cut off or other than its digest says."""

    code = "backup_damaged"


class BackupNewer(BackupError):
    """A newer release wrote it."""

    code = "backup_newer"


class TargetNotEmpty(BackupError):
    """The home to restore into, or the database to move into, holds state already."""

    code = "home_not_empty"


class NoRoom(BackupError):
    """The disk is full; what was begun has been removed."""

    code = "disk_full"

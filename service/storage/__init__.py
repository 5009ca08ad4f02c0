"""What a home holds on disk: backups, restoring them, removing what nothing names, and how long records are kept."""

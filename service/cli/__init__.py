"""The commands of `hatrack`, one module for each kind; `service.cli.main` puts them together."""

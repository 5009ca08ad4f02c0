"""The commands of `hatrack`, one module for each kind; `service.cli` puts them together."""

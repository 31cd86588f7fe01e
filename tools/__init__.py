"""Launchers, measurements and upkeep; the package imports none of them."""

"""Every way Lightning trains: one test a cell, and the table of cells in ``docs/compatibility/matrix.md``."""

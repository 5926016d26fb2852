"""The management API: what the pages do, for programs. A module for each kind of row, `resources` for their habits."""

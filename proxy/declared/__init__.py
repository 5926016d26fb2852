"""Configuration as code: document.py reads a YAML file with its lines, fields.py says what is written how, kinds/ which
tables a file speaks of, applying.py has the tables say what the file says, exporting.py writes such a file."""

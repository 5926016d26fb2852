"""config.json of the gateway in Go, so that its users can switch: reading.py says what a file holds, importing.py has
its servers, keys and rules in the tables, and the settings take the rest (gateway_site/settings.py)."""

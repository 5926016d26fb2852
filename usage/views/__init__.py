"""The people's pages of what was used."""

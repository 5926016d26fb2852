"""The only code that speaks HTTP to a backend during a call."""

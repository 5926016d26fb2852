"""Who is told when 80 % and 100 % of a limit are used: found in the roll-ups, written down once, sent by one process.

Not from what the engines hold: that contains estimates of running calls, dies with its process, and each worker may
know only its own. The roll-ups are true, shared and durable, and a finished call is in them within a second.
"""

"""The same question twice: answers that are kept (store.py, shared.py), and calls that share one answer while it is
made (coalescing.py). What may be shared is policy.py's to say, whether two questions are the same key.py's.
"""

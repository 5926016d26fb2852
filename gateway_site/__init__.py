"""Settings, addresses and servers: what makes one program of the planes."""

import gc

# What is loaded at the start stays. Looking for garbage in it after each 700 objects takes a tenth of the time.
gc.set_threshold(50_000, 10, 10)

"""What clients of the tests trust that speak plain HTTP."""

import ssl

# Without it each new client of httpx reads the authorities of the system, which takes 20 ms.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

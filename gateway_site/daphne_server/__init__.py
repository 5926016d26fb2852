"""Daphne in its three forms: `manage.py serve --server daphne`, `manage.py runserver` and bare `daphne`.

`answers.py` mends for all three what Daphne does to the answer of a call; `requests.py` and `server.py` are the server
of the first. What is weaker than on uvicorn stands in docs/deployment.md.
"""

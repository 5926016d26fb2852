#!/usr/bin/env python
"""Django's command line for Ollama Gateway."""

import sys

if __name__ == "__main__":
    from gateway_site.command_line import run_command

    sys.exit(run_command(sys.argv))

import argparse

from proxy.fake_ollama.command_line import add_arguments, run

parser = argparse.ArgumentParser(prog="python -m proxy.fake_ollama", description="A fake Ollama.")
add_arguments(parser)
run(vars(parser.parse_args()))

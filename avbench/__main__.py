"""Run as `python -m avbench`."""

from avbench.cli import main

main(prog_name="avbench")

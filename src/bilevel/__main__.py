"""`python -m bilevel`."""

from bilevel.cli import main

main()

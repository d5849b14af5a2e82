"""`python -m bilevel`."""

import sys

from bilevel import preloaded

status = preloaded.run(sys.argv[1:])
if status is not None:
    sys.exit(status)

from bilevel.cli import main  # noqa: E402  # takes longer than to ask

main()

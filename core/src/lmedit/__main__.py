"""`python -m lmedit`: the command line, where the program `lmedit` is not on the path."""

from lmedit.cli import main

if __name__ == "__main__":
    main()

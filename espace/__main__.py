"""`python -m espace` is the `espace` command, for where scripts are not on the PATH."""

from espace.cli import main

if __name__ == "__main__":
    main()

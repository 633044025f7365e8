"""`python -m steelgen`: the command line without the console script (torchrun needs a module)."""

from steelgen.cli.app import main

if __name__ == "__main__":
    main()

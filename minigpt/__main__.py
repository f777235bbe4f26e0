"""`python -m minigpt`, for launchers that start a module."""

from minigpt.cli.main import main

if __name__ == "__main__":
    main()

"""The command `minigpt`, and `python -m minigpt` for launchers that start a module."""

from minigpt.system.signals import interruptible


def main() -> None:
    """Answer the process's own command line and exit. Ctrl-C waits for the first imports, too."""
    with interruptible():
        from minigpt.cli.main import main as answer

        answer()


if __name__ == "__main__":
    main()

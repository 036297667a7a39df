"""The one entry of a checkout; where the package is installed, the command is `leo`."""

from runner.command import command, main

__all__ = ["command", "main"]

if __name__ == "__main__":
    command()

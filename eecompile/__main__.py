"""``python -m eecompile`` and the command ``eecompile``."""

from __future__ import annotations

import sys

import eecompile
from eecompile.interrupt import install


def main() -> None:
    """Run the command line, or say how to install it."""
    try:
        install()
        import rich  # noqa: F401
        import typer  # noqa: F401

        from eecompile.cli import main as run
    except ImportError as error:
        if sys.argv[1:] in (["--version"], ["-V"]):
            print(f"eecompile {eecompile.__version__}")
            return
        message = f"found no package {error.name}; expected the command line's extra"
        sys.exit(f"error: {message}; pip install 'eecompile[cli]'.")
    except KeyboardInterrupt:
        print("interrupted: nothing was begun.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()

"""``python -m eecompile`` and the command ``eecompile``."""

from __future__ import annotations

import sys

import eecompile
from eecompile.interrupt import install
from eecompile.system import open_streams


def main() -> None:
    """Run the command line, or say how to install it."""
    try:
        open_streams()
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
    except MemoryError:
        sys.exit("error: found too little memory; expected room for Python's packages.")
    except KeyboardInterrupt:
        print("interrupted: nothing was begun.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()

"""Write the type stubs of TensorRT, corrected, to the folder that is named.

The package tensorrt-stubs (10.13) was generated: parameters are called ``in``, and one
parameter without a default follows one with. Type checkers refuse the whole file for that.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path


def main(output: Path) -> None:
    distribution = importlib.metadata.distribution("tensorrt-stubs")
    for file in distribution.files or ():
        if file.suffix != ".pyi":
            continue
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"(?<=[(,] )in: ", "in_: ", text)
        text = text.replace(" = None, channel_axis: int)", " = None, channel_axis: int = 0)")
        place = output / str(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

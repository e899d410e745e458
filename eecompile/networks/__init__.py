"""Multi-exit networks, and how to load one. Needs torch.

:class:`MultiExitNetwork` is what export asks of a network; :class:`DiT` and :class:`UViT` are
those that ship, and :func:`load_network` makes the network of a recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.networks.base import MultiExitNetwork as MultiExitNetwork
    from eecompile.networks.dit import DiT as DiT
    from eecompile.networks.load import load_network as load_network
    from eecompile.networks.uvit import UViT as UViT

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "base": "MultiExitNetwork",
            "dit": "DiT",
            "load": "load_network",
            "uvit": "UViT",
        },
    )

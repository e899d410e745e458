"""Files that commands write: checked before the work, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.arrays import Array
from eecompile.cli.console import extra
from eecompile.errors import UsageError
from eecompile.programs.companions import SampleDecoder
from eecompile.programs.interface import Interface
from eecompile.store.files import written

MEDIA = (".gif", ".mp4", ".wav", ".txt")
"""How names of files end that only decoded samples can be written to."""
_SUFFIXES = {
    "": (".png",),
    "image": (".png",),
    "video": (".gif", ".mp4"),
    "audio": (".wav",),
    "text": (".txt",),
}
_EXTRAS = {".mp4": "video"}


def check_file(output: Path, *suffixes: str) -> None:
    """Pass when a file whose name ends in one of these can be written there.

    Raises:
        UsageError: the name or the folder is wrong.
    """
    if output.suffix not in suffixes or not output.parent.is_dir() or output.is_dir():
        raise UsageError(
            found=f"output {output}",
            expected=f"a name that ends in {' or '.join(suffixes)}, in a folder that exists",
            remedy="rename it, create the folder, or choose another place",
        )


def check_samples(
    output: Path, decoder: SampleDecoder | None, shape: tuple[int, ...], count: int
) -> None:
    """Pass when samples can be written to a file of that name.

    Args:
        output: the file.
        decoder: of the network, where samples are to be decoded.
        shape: of a sample.
        count: of the samples.

    Raises:
        UsageError: its kind is another than that of the samples.
    """
    suffix, kind = output.suffix, decoder.kind if decoder else ""
    if suffix == ".npy":
        return
    if suffix not in _SUFFIXES[kind]:
        raise UsageError(
            found=f"output {output} for {f'decoded {kind}' if kind else 'samples as they are'}",
            expected=f"a name that ends in {' or '.join((*_SUFFIXES[kind], '.npy'))}",
            remedy="rename it",
        )
    if suffix == ".wav" and count != 1:
        raise UsageError(
            found=f"{count} samples in {output}",
            expected="one waveform a file",
            remedy="pass -n 1, or write an .npy file",
        )
    if not kind:
        from eecompile.show.pictures import check_drawable

        check_drawable(shape)


def write_decoded(
    output: Path, made: Array, decoder: SampleDecoder, texts: Sequence[str] = ()
) -> None:
    """Write decoded samples as what they are: an array, pictures, a video, a waveform or text.

    Several pictures or videos stand side by side; each of the texts, which are those of what was
    decoded, has a line.
    """
    with written(output) as partial:
        if output.suffix == ".txt":
            lines = (" ".join(text.splitlines()) + "\n" for text in texts)
            partial.write_text("".join(lines), "utf-8")
            return
        if output.suffix == ".npy":
            with partial.open("wb") as file:
                np.save(file, made)
            return
        with extra(_EXTRAS.get(output.suffix, "cli")):
            from eecompile.show import media, pictures

            if output.suffix == ".png":
                pictures.save_sheet(made, decoder.range, partial)
            elif output.suffix == ".wav":
                media.save_waveform(made[0], decoder.rate, partial)
            else:
                save = media.save_gif if output.suffix == ".gif" else media.save_video
                save(made, decoder.range, decoder.rate, partial)


def write_samples(
    output: Path,
    states: np.ndarray[Any, np.dtype[np.float32]],
    interface: Interface,
    conditions: Mapping[str, Any],
    title: str,
) -> None:
    """Write samples [n, *shape] as an array, or as a labelled grid."""
    with written(output) as partial:
        if output.suffix == ".npy":
            with partial.open("wb") as file:
                np.save(file, states)
            return
        from eecompile.show.pictures import drawable, save_grid, what_is_drawn

        labels, columns = _labels(interface, conditions, len(states))
        drawn, bounds = drawable(states, interface.state.range)
        if drawn is not states:
            title += f" ({what_is_drawn(states.shape[1:])})"
        save_grid(drawn, bounds, partial, title=title, labels=labels, columns=columns)


def _labels(
    interface: Interface, conditions: Mapping[str, Any], count: int
) -> tuple[list[str], int]:
    """A name for each sample, from the first condition that has names; and the columns."""
    for name, spec in interface.conditions.items():
        if spec.names and spec.range and not spec.shape:
            values = spec.values(name, conditions.get(name), range(count))
            low = int(spec.range[0])
            words = [spec.names[int(value) - low] for value in values.tolist()]
            cycles = spec.default == "cycle" and name not in conditions
            return words, len(spec.names) if cycles and count >= len(spec.names) else 0
    return [], 0

"""Exit schedules chosen by measurement, under a budget of time.

:func:`eecompile.tune.tuning.tune` measures what every exit costs and how far it moves the
samples, finds the schedules that lose least, and measures those; ``eecompile tune`` writes
them. Needs numpy and the runtime; the page needs plotly, the tables rich.
"""

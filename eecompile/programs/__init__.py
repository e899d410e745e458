"""What runs, as data: processes, schedules, solvers and the programs they compile to."""

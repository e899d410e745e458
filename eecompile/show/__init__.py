"""What people see: tables, pages, plots and pictures."""

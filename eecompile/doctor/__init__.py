"""What can build and run on this machine, why the rest cannot, and what to install."""

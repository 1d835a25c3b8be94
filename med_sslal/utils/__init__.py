"""Seeds, devices, atomic files and the errors a user can mend."""

"""What lies outside: models, files and folders, and how they are read and written."""

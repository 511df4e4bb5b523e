"""What lies outside the program: how models, files and folders are read and written, whole or not at all."""

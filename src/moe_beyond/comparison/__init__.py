"""Two or more states of the pipeline side by side, wherever they are kept: files, git and DVC, or MLflow."""

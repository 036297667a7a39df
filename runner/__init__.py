"""What both training stages share: run folders, resume, logs, whole files. Knows no method and no data."""

"""The run report: figures as PNG files, and one page that holds them all."""

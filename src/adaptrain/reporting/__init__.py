"""What a run leaves behind: its folder, its manifest, its results row, and the table over many runs."""

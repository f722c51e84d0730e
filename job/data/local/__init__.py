"""This machine's disks: directories that processes share, and what is fetched into them."""

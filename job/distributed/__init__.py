"""With whom a process runs, when it must stop, and how it ends."""

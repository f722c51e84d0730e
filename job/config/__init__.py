"""What a run is told, and the errors that answer a mistake."""

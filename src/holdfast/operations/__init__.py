"""Long work as durable steps with undo, progress and cancel."""

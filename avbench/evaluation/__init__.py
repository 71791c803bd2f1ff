"""What a method is worth."""

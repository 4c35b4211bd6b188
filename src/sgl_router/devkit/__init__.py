"""What an author makes a plugin with: a folder to begin with, and the module built of it."""

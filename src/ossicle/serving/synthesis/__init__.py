"""Voices for the server's answers: text in, sound out, while the text is being written."""

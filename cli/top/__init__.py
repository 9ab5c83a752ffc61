"""`dragoman top`: what servers do, live in a terminal."""
